"""Reshapes: dimensions are merged, or one is split, of which then one part may lose positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
import torch

from fxopt_prune.channels.atoms import Labels, fixed, is_free
from fxopt_prune.channels.heads import leads_to_heads
from fxopt_prune.channels.rules.registry import Changed, Smaller, resize, rule
from fxopt_prune.channels.trace import Call, Dims, UnclearError

aten = torch.ops.aten


@rule(aten.flatten.using_ints)
def flatten(call: Call) -> Dims:
    """Merges dimensions."""
    return reshaped(call, call.first(), call.sizes)


@rule(aten.unflatten.int)
def unflatten(call: Call) -> Dims:
    """Splits a dimension."""
    return _writable(call, reshaped(call, call.first(), call.sizes), found_out=0)


@rule(aten.reshape.default, aten.view.default, aten._unsafe_view.default)
def reshape(call: Call) -> Dims:
    """Finds what is merged or split with what, and labels each on its own."""
    labels = reshaped(call, call.first(), call.sizes)
    real = call.node.meta["val"].shape
    given = zip(call.arguments[_sizes_name(call)], real, strict=True)
    taken = any(size == -1 and not isinstance(size_now, int) for size, size_now in given)
    return _writable(call, labels, found_out=0 if taken else 1)


def reshaped(call: Call, x: Dims, sizes: Sequence[int]) -> Dims:
    """The labels of ``x`` in another shape."""
    made: list[Labels] = []
    for come, go in _blocks([len(labels) for labels in x], sizes):
        flat = _merged(call, [x[dim] for dim in come])
        made += _split(call, flat, [sizes[dim] for dim in go], first=len(made), rank=len(sizes))
    return tuple(made)


def _blocks(come: Sequence[int], go: Sequence[int]) -> Iterator[tuple[range, range]]:
    """The smallest runs of dimensions, old and new ones, that have as many elements."""
    i = j = 0
    while i < len(come) or j < len(go):
        start, first = i, j
        i, j = min(i + 1, len(come)), min(j + 1, len(go))
        while (have := prod(come[start:i])) != (want := prod(go[first:j])):
            if (i == len(come)) if have < want else (j == len(go)):
                raise UnclearError("the sizes do not fit")
            i, j = (i + 1, j) if have < want else (i, j + 1)
        yield range(start, i), range(first, j)


def _merged(call: Call, dims: list[Labels]) -> Labels:
    """The labels of several dimensions as one; of those that may lose positions one does."""
    free = [i for i, labels in enumerate(dims) if is_free(labels)]
    size = int(np.prod([len(labels) for labels in dims], dtype=np.int64))
    if not free:
        return fixed(size)
    chosen = max(free, key=lambda i: len(np.unique(dims[i])))
    for i in free:
        if i != chosen:
            call.fix(dims[i], "merged with another dimension that may lose positions")
    shape = [-1 if i == chosen else 1 for i in range(len(dims))]
    grid = np.broadcast_to(dims[chosen].reshape(shape), [len(labels) for labels in dims])
    return grid.ravel()


def _split(call: Call, flat: Labels, sizes: list[int], first: int, rank: int) -> list[Labels]:
    """The labels of one dimension as several, of which one may lose positions."""
    made = [fixed(size) for size in sizes]
    proper = [i for i, size in enumerate(sizes) if size > 1]
    if not is_free(flat) or not proper:
        return made
    grid = flat.reshape(sizes)
    for i in _losing(call, grid, proper, first, rank):
        rows = np.moveaxis(grid, i, 0).reshape(sizes[i], -1)
        call.couple(rows, rows[:, :1])
        made[i] = rows[:, 0].copy()
    return made


def _losing(call: Call, grid: Labels, proper: list[int], first: int, rank: int) -> list[int]:
    """The dimension of a split that may lose positions.

    One along which all else is the same anyway, or one of attention heads, or the largest.
    """
    if call.trace.marking:  # all that a mark can reach counts
        return proper
    alike = [i for i in proper if _alike(grid, i)]
    heads = [i for i in proper if not alike and leads_to_heads(call, first + i, rank)]
    return [max(alike or heads or proper, key=lambda i: grid.shape[i])]


def _alike(grid: Labels, dim: int) -> bool:
    """Whether labels depend on the position along one dimension alone."""
    rows = np.moveaxis(grid, dim, 0).reshape(grid.shape[dim], -1)
    return bool((rows == rows[:, :1]).all())


def _writable(call: Call, labels: Dims, found_out: int) -> Dims:
    """Fixes what could not be written as a size: of those that depend on the batch so many can."""
    pairs = zip(labels, call.node.meta["val"].shape, strict=True)
    unwritten = [each for each, size in pairs if not isinstance(size, int) and is_free(each)]
    if len(unwritten) > found_out:
        for each in unwritten:
            call.fix(each, "its size depends on the batch")
    return labels


def _sizes_name(call: Call) -> str:
    """What the operator calls the sizes that it is given."""
    return "shape" if "shape" in call.arguments else "size"


@resize(aten.reshape.default, aten.view.default, aten._unsafe_view.default)
def reshape_less(smaller: Smaller) -> Changed | None:
    """Sizes that are written out change; one that depends on the batch is left to be found out."""
    call = smaller.call
    labels = call.trace.values[call.node]
    assert isinstance(labels, tuple)
    real = call.node.meta["val"].shape
    sizes = list(call.arguments[_sizes_name(call)])
    for dim, each in enumerate(labels):
        if isinstance(real[dim], int):
            sizes[dim] = smaller.count(each)
    for dim, each in enumerate(labels):
        if not isinstance(real[dim], int) and smaller.shrinks(each):
            sizes[dim] = -1
    return Changed(call.node.target, (call.node.args[0], sizes))


@resize(aten.unflatten.int)
def unflatten_less(smaller: Smaller) -> Changed | None:
    """The same for the dimension that is split."""
    call = smaller.call
    labels = call.trace.values[call.node]
    assert isinstance(labels, tuple)
    x, dim = call.first(), call.arguments["dim"]
    parts = labels[dim % len(x) :][: len(call.arguments["sizes"])]
    return Changed(call.node.target, (call.node.args[0], dim, [smaller.count(p) for p in parts]))


@rule(aten.pixel_shuffle.default, aten.pixel_unshuffle.default)
def pixel_shuffle(call: Call) -> Dims:
    """Channels become neighbours in space, or the other way round: those of a block stay one."""
    x = call.first()
    for labels in x[-2:]:
        call.fix(labels, "neighbours in space")
    space = tuple(fixed(size) for size in call.sizes[-2:])
    old, new = len(x[-3]), call.sizes[-3]
    if new > old:
        return (*x[:-3], x[-3].repeat(new // old), *space)
    blocks = x[-3].reshape(new, -1)
    call.couple(blocks, blocks[:, :1])
    return (*x[:-3], blocks[:, 0].copy(), *space)


@rule(aten.channel_shuffle.default)
def channel_shuffle(call: Call) -> Dims:
    """Groups of channels are interleaved: all of them lose the same positions."""
    x, groups = call.first(), call.arguments["groups"]
    blocks = x[1].reshape(groups, -1)
    call.couple(blocks, blocks[:1])
    return (x[0], blocks.T.ravel(), *x[2:])
