"""Tensors joined to one, or one taken apart."""

from __future__ import annotations

import operator
from itertools import accumulate
from operator import itemgetter
from typing import Any

import numpy as np
import torch

from fxopt.plugin import size_hint
from fxopt_prune.channels.atoms import Labels, fixed, is_free
from fxopt_prune.channels.rules.moving import along, number
from fxopt_prune.channels.rules.pointwise import broadcast
from fxopt_prune.channels.rules.registry import Changed, Smaller, resize, rule
from fxopt_prune.channels.trace import Call, Dims, Value

aten = torch.ops.aten


@rule(aten.cat.default)
def cat(call: Call) -> Dims:
    """One behind another along a dimension; in the others they go together."""
    tensors = [call.dims(tensor) for tensor in call.arguments["tensors"]]
    dim = call.arguments["dim"] % len(tensors[0])
    joined = np.concatenate([dims[dim] for dims in tensors])
    others = broadcast(call, [along(dims, dim, lambda _: fixed(1)) for dims in tensors])
    return (*others[:dim], joined, *others[dim + 1 :])


@rule(aten.stack.default)
def stack(call: Call) -> Dims:
    """Side by side along a new dimension."""
    tensors = [call.dims(tensor) for tensor in call.arguments["tensors"]]
    dim = call.arguments["dim"] % (len(tensors[0]) + 1)
    together = broadcast(call, tensors)
    return (*together[:dim], fixed(len(tensors)), *together[dim:])


@rule(
    aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default,
    aten.tensor_split.sections, aten.tensor_split.indices,
)  # fmt: skip
def split(call: Call) -> list[Dims]:
    """Ranges of positions behind one another."""
    x, dim = call.first(), call.arguments["dim"]
    return [along(x, dim, itemgetter(part)) for part in _parts(call, dim)]


def _parts(call: Call, dim: int) -> list[slice]:
    sizes = [number(part.shape[dim]) for part in call.node.meta["val"]]
    ends = list(accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


@resize(
    aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, aten.chunk.default,
    aten.tensor_split.sections, aten.tensor_split.indices,
)  # fmt: skip
def split_less(smaller: Smaller) -> Changed | None:
    """The ranges have other sizes, each its own."""
    call = smaller.call
    x, dim = call.first(), call.arguments["dim"]
    if not smaller.shrinks(x[dim]):
        return None
    sizes = [smaller.count(x[dim][part]) for part in _parts(call, dim)]
    return Changed(aten.split_with_sizes.default, (call.node.args[0], sizes, dim))


@rule(operator.getitem)
def getitem(call: Call) -> Value:
    """One of several tensors."""
    values, index = call.node.args
    several: Any = call.value(values)
    one: Value = several[index]
    return one


@rule(
    aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
)  # fmt: skip
def made(call: Call) -> Dims:
    """A tensor of one number, of whatever size is needed."""
    real = call.node.meta["val"].shape
    return tuple(_of_any_size(call, size) for size in real)


def _of_any_size(call: Call, size: Any) -> Labels:
    if isinstance(size, int):
        return call.trace.atoms.fresh(size)
    return fixed(size_hint(size))


@resize(
    aten.zeros.default, aten.ones.default, aten.full.default, aten.empty.memory_format,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
)  # fmt: skip
def made_less(smaller: Smaller) -> Changed | None:
    """Sizes that are written out change."""
    call = smaller.call
    labels = call.trace.values[call.node]
    assert isinstance(labels, tuple)
    if not any(map(smaller.shrinks, labels)):
        return None
    name = "size" if "size" in call.arguments else "new_size"
    at = list(call.arguments).index(name)
    given = zip(call.arguments[name], labels, strict=True)
    sizes = [smaller.count(each) if is_free(each) else size for size, each in given]
    args = list(call.node.args)
    args[at] = sizes
    return Changed(call.node.target, tuple(args))
