"""Layers that the user wants to stay in float, by patterns of their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import fx

from fxopt.plugin import Program, check_names, is_named
from fxopt_quantize.rules import Role, operands, role_of


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


def skip_text(name: str, layers: Iterable[fx.Node]) -> str:
    """The settings of a pass that leave layers in float.

    Args:
        name: Of the pass.
        layers: Their nodes.
    """
    names = dict.fromkeys(repr(str(node.target)) for node in layers)
    return f"{name}{{skip=[{','.join(names)}]}}"


def layers_rounding(program: Program, value: fx.Node) -> list[fx.Node]:
    """The layers without which static int8 would not round a value.

    Those that take it, at once or behind operations that compute in int8 for their sake; and where
    attention takes it, the layer that it comes from.
    """
    found: dict[fx.Node, None] = {}
    ahead, seen = [value], {value}
    for node in ahead:
        role = role_of(program, node)
        for user in node.users:
            kind = role_of(program, user)
            if kind is Role.LAYER:
                found[user] = None
            elif kind is Role.ATTEND:
                found.update(dict.fromkeys(_origin(program, node)))
            elif user not in seen and (
                kind in (Role.PASS, Role.JOIN, Role.COMBINE)
                or (kind is Role.ACTIVATE and node is not value and role in _COMPUTED)
            ):
                seen.add(user)
                ahead.append(user)
    return list(found)


_COMPUTED = (Role.COMBINE, Role.ACTIVATE)


def _origin(program: Program, node: fx.Node) -> list[fx.Node]:
    while (role := role_of(program, node)) is Role.PASS and operands(node):
        node = operands(node)[0]
    return [node] if role is Role.LAYER else []


def layers_taking(value: fx.Node) -> list[fx.Node]:
    """The layers that take a value as it is."""
    return [user for user in value.users if user.op == "call_module"]
