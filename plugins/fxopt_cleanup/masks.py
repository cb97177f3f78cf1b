"""Masks of attention that leave each query a key.

Where a query has none, its softmax is no number, and the operator yields zeros instead. So a mask
is taken over only where that cannot be: a constant of which each row leaves something, or what
is computed from integers and finite numbers alone. What the caller passes in as floats may hold
anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Program

aten = torch.ops.aten

# Operations whose results are finite where all that they take is, but for an overflow.
_FINITE = {
    aten.add.Tensor, aten.sub.Tensor, aten.rsub.Scalar, aten.rsub.Tensor, aten.mul.Tensor,
    aten.neg.default, aten.masked_fill.Scalar, aten.where.self, aten.where.ScalarOther,
    aten.where.ScalarSelf, aten.where.Scalar, aten.zeros.default, aten.full.default,
    aten.zeros_like.default, aten.to.dtype, aten.to.dtype_layout, aten._to_copy.default,
    aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.slice.Tensor,
    aten.select.int, aten.reshape.default, aten.permute.default, aten.transpose.int,
    aten.contiguous.default, aten.repeat.default,
}  # fmt: skip


def leaves_keys(program: Program, mask: fx.Node) -> bool:
    """Whether each row of a mask that is added lets at least one score through."""
    if mask.op == "get_attr":
        return bool((program.tensor(mask) > -math.inf).any(-1).all())
    return _finite(program, mask)


def chooses_keys(program: Program, choice: fx.Node, chosen: bool) -> bool:
    """Whether booleans are constants of which each row has the value ``chosen`` somewhere."""
    return choice.op == "get_attr" and bool((program.tensor(choice) == chosen).any(-1).all())


def _finite(program: Program, node: fx.Node) -> bool:
    """Whether no infinity gets into a value on the way from integers and constants."""
    waiting, seen = [node], set[fx.Node]()
    while waiting:
        current = waiting.pop()
        if current in seen or not _holds_floats(current):
            continue
        if not _brings_none(program, current):
            return False
        seen.add(current)
        waiting += current.all_input_nodes
    return True


def _brings_none(program: Program, node: fx.Node) -> bool:
    if node.op == "get_attr":
        return bool(program.tensor(node).isfinite().all())
    if node.op == "call_module":
        leaf = program.leaf(node)
        return isinstance(leaf, nn.Embedding) and bool(leaf.weight.isfinite().all())
    known = node.target in _FINITE and not _narrows(node)
    return known and all(
        math.isfinite(number) for number in _numbers((node.args, *node.kwargs.values()))
    )


def _narrows(node: fx.Node) -> bool:
    """Whether a number of its first argument may be too large for its dtype."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not _holds_floats(source):
        return False
    reach = torch.finfo(node.meta["val"].dtype).max
    return reach < torch.finfo(source.meta["val"].dtype).max


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value


def _holds_floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
