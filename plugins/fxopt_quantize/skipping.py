"""Layers that the user wants to stay in float, by patterns of their names."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Sequence

from torch import fx

from fxopt.plugin import PassError


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
    check_skipped(patterns, layers)
    reasons = {
        node: "named in skip" if is_skipped(node, patterns) else refusal(node) for node in layers
    }
    return {node: reason for node, reason in reasons.items() if reason is not None}


def is_skipped(node: fx.Node, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches the qualified name of a layer."""
    return any(fnmatch.fnmatchcase(str(node.target), pattern) for pattern in patterns)


def check_skipped(patterns: Sequence[str], nodes: Sequence[fx.Node]) -> None:
    """Makes sure that each pattern matches a layer.

    Raises:
        PassError: One does not; it says which name comes close.
    """
    names = [str(node.target) for node in nodes]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            close = difflib.get_close_matches(pattern, names, n=1)
            raise PassError(
                f"skip names {pattern!r}, but there is no such layer",
                hint=f"did you mean {close[0]!r}?" if close else "use qualified names of layers",
            )
