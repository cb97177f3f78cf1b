"""Layers that the user wants to stay in float, by patterns of their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx

from fxopt.plugin import check_names, is_named


def staying(
    layers: Sequence[fx.Node], patterns: Sequence[str], refusal: Callable[[fx.Node], str | None]
) -> dict[fx.Node, str]:
    """The layers that stay in float, with reasons.

    Args:
        layers: All that there are.
        patterns: Of the names of those that the user wants to stay.
        refusal: Why one of the others cannot be changed; None where it can.

    Raises:
        PassError: A pattern matches no layer.
    """
    check_names(patterns, [str(node.target) for node in layers], "skip")
    named = {node for node in layers if is_named(str(node.target), patterns)}
    reasons = {node: "named in skip" if node in named else refusal(node) for node in layers}
    return {node: reason for node, reason in reasons.items() if reason is not None}
