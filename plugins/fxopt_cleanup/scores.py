"""The scores of attention: scaled products of queries and keys, plus a mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_cleanup.memory import argument, operand, same_kind

aten = torch.ops.aten

PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SCALINGS: dict[Any, Callable[[float], float]] = {
    aten.mul.Tensor: lambda number: number,
    aten.mul.Scalar: lambda number: number,
    aten.div.Tensor: lambda number: 1 / number,
    aten.div.Scalar: lambda number: 1 / number,
}
# What a product with a number may be in front of as well as behind, whatever the layout is.
_MOVES = (
    aten.reshape.default, aten.flatten.using_ints, aten.transpose.int, aten.permute.default,
    aten.mT.default, aten.swapaxes.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.contiguous.default,
)  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """What is made probabilities.

    Attributes:
        query: Of shape (..., queries, width).
        flipped: The keys, of shape (..., width, keys).
        scale: What their products are multiplied with.
        mask: What is added.
        choice: Booleans, by which others become minus infinity.
        chosen: What these are where scores stay.
        scalings: Products that have become part of ``scale``, and what they are taken of.
    """

    query: fx.Node
    flipped: fx.Node
    scale: float = 1.0
    mask: fx.Node | None = None
    choice: fx.Node | None = None
    chosen: bool = True
    scalings: dict[fx.Node, fx.Node] = field(default_factory=dict)


def scores_of(program: Program, node: Any) -> Scores | None:
    """The parts of scores that nothing else takes, if that is what a node yields."""
    if not isinstance(node, fx.Node) or len(node.users) > 1:
        return None
    if node.target is aten.baddbmm.default:
        return _batched(program, node)
    if node.target is aten.add.Tensor:
        return _masked_sum(program, node)
    if node.target in (aten.masked_fill.Scalar, aten.where.ScalarOther):
        return _masked_choice(program, node)
    return _scaled_product(program, node)


def _masked_sum(program: Program, node: fx.Node) -> Scores | None:
    if argument(node, "alpha") != 1:
        return None
    for product, mask in (node.args[:2], node.args[1::-1]):
        found = _scaled_product(program, product)
        if found is not None and isinstance(mask, fx.Node) and _same_kind(node, product):
            return replace(found, mask=mask)
    return None


def _masked_choice(program: Program, node: fx.Node) -> Scores | None:
    filled = node.target is aten.masked_fill.Scalar
    product, choice = node.args[:2] if filled else node.args[1::-1]
    found = _scaled_product(program, product)
    other = argument(node, "value" if filled else "other")
    if found is None or other != -math.inf or not _same_kind(node, product):
        return None
    return replace(found, choice=_node(choice), chosen=not filled)


def _batched(program: Program, node: fx.Node) -> Scores | None:
    """The fused product and sum that nn.MultiheadAttention calls."""
    mask, query, flipped = node.args[:3]
    scale = argument(node, "alpha")
    if argument(node, "beta") != 1 or not isinstance(scale, (int, float)):
        return None
    assert isinstance(mask, fx.Node)
    return _unscaled(program, Scores(_node(query), _node(flipped), float(scale), mask))


def _scaled_product(program: Program, node: Any) -> Scores | None:
    """Without a mask: products of queries and keys, and numbers that they are scaled by."""
    scalings: list[float] = []
    while isinstance(node, fx.Node) and len(node.users) == 1 and node.target not in PRODUCTS:
        number = _factor(program, node)
        if number is None:
            return None
        scalings.append(number)
        node = operand(node)
    if not isinstance(node, fx.Node) or len(node.users) > 1:
        return None
    query, flipped = node.args[:2]
    return _unscaled(program, Scores(_node(query), _node(flipped), math.prod(scalings)))


def _unscaled(program: Program, scores: Scores) -> Scores:
    """The same scores, of queries and keys that are not scaled themselves."""
    scalings, scale = dict(scores.scalings), scores.scale
    for side in (scores.query, scores.flipped):
        node: fx.Node | None = side
        while node is not None and len(node.users) == 1:
            number = _factor(program, node)
            if number is not None:
                scale *= number
                scalings[node] = _node(node.args[0])
            elif node.target not in _MOVES:
                break
            node = operand(node)
    return replace(scores, scale=scale, scalings=scalings)


def _factor(program: Program, node: fx.Node) -> float | None:
    """The number that a node multiplies its first argument with, if that is all it does."""
    source = operand(node)
    if node.target not in _SCALINGS or source is None or not same_kind(node, source):
        return None
    number = _number(program, node.args[1])
    return _SCALINGS[node.target](number) if number else None


def _number(program: Program, value: Any) -> float | None:
    """A number, or the only one of a buffer."""
    if isinstance(value, fx.Node) and value.op == "get_attr":
        tensor = program.tensor(value)
        plain = tensor.numel() == 1 and not isinstance(tensor, nn.Parameter)
        return float(tensor) if plain and not tensor.is_complex() else None
    return float(value) if isinstance(value, (int, float)) else None


def _same_kind(node: fx.Node, other: Any) -> bool:
    return isinstance(other, fx.Node) and same_kind(node, other)


def _node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value
