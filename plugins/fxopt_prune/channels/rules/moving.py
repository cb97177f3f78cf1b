"""Operations that move positions along single dimensions, or move dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fxopt_prune.channels.atoms import Labels, fixed, is_free
from fxopt_prune.channels.rules.registry import Changed, Smaller, resize, rule
from fxopt_prune.channels.trace import Call, Dims, UnclearError

aten = torch.ops.aten


def along(dims: Dims, dim: int, change: Callable[[Labels], Labels]) -> Dims:
    """The labels with one dimension changed."""
    dim %= len(dims)
    return (*dims[:dim], change(dims[dim]), *dims[dim + 1 :])


def number(value: Any) -> int:
    """An argument that has to be a number.

    Raises:
        UnclearError: It depends on the batch.
    """
    if not isinstance(value, int):
        raise UnclearError("an argument depends on the batch")
    return value


# --- dimensions -----------------------------------------------------------------------------


@rule(aten.permute.default)
def permute(call: Call) -> Dims:
    """Reorders dimensions."""
    x = call.first()
    return tuple(x[dim] for dim in call.arguments["dims"])


@rule(aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
def transpose(call: Call) -> Dims:
    """Exchanges two dimensions."""
    x = list(call.first())
    _, one, other = call.arguments.values()
    x[one], x[other] = x[other], x[one]
    return tuple(x)


@rule(aten.t.default, aten.numpy_T.default, aten.adjoint.default, aten.mT.default)
def turned(call: Call) -> Dims:
    """Exchanges the two dimensions of a matrix."""
    x = call.first()
    if len(x) != 2:
        raise UnclearError("it is no matrix")
    return x[::-1]


@rule(aten.movedim.int)
def movedim(call: Call) -> Dims:
    """Moves one dimension."""
    x = list(call.first())
    source, destination = (call.arguments[k] % len(x) for k in ("source", "destination"))
    x.insert(destination, x.pop(source))
    return tuple(x)


@rule(aten.unsqueeze.default)
def unsqueeze(call: Call) -> Dims:
    """A new dimension of size 1."""
    x = call.first()
    dim = call.arguments["dim"] % (len(x) + 1)
    return (*x[:dim], fixed(1), *x[dim:])


@rule(aten.squeeze.dim, aten.squeeze.dims)
def squeeze(call: Call) -> Dims:
    """Without dimensions of size 1, where they are."""
    x, dims = call.first(), call.arguments["dim"]
    gone = {dim % len(x) for dim in ([dims] if isinstance(dims, int) else dims)}
    return tuple(labels for i, labels in enumerate(x) if i not in gone or len(labels) > 1)


# --- positions ------------------------------------------------------------------------------


@rule(aten.select.int)
def select(call: Call) -> Dims:
    """One position, which has to stay."""
    x, index = call.first(), number(call.arguments["index"])
    dim = call.arguments["dim"] % len(x)
    call.fix(x[dim][[index]], "a position is selected")
    return (*x[:dim], *x[dim + 1 :])


@resize(aten.select.int)
def select_less(smaller: Smaller) -> Changed | None:
    """The position may have another number now."""
    call = smaller.call
    x, dim, index = call.first(), call.arguments["dim"], call.arguments["index"]
    if not smaller.shrinks(x[dim]):
        return None
    before = int(smaller.stays(x[dim])[: index % len(x[dim])].sum())
    return Changed(call.node.target, (call.node.args[0], dim, before))


@rule(aten.slice.Tensor)
def slice_(call: Call) -> Dims:
    """A range of positions, perhaps with steps."""
    x, dim = call.first(), call.arguments["dim"]
    if call.arguments["step"] != 1:
        call.fix(x[dim], "taken with steps")
    return along(x, dim, lambda labels: labels[_range(call, len(labels))])


def _range(call: Call, size: int) -> slice:
    """What is taken; all of a dimension that has a symbolic size is taken as such."""
    start, end, step = (call.arguments[name] for name in ("start", "end", "step"))
    if call.sizes[call.arguments["dim"]] == size and step == 1:
        return slice(None)
    first, last = (None if each is None else number(each) for each in (start, end))
    return slice(first, last, number(step))


@resize(aten.slice.Tensor)
def slice_less(smaller: Smaller) -> Changed | None:
    """The range ends elsewhere."""
    call = smaller.call
    x, dim = call.first(), call.arguments["dim"]
    if not smaller.shrinks(x[dim]) or len(x[dim]) == call.sizes[dim]:
        return None
    taken = np.zeros(len(x[dim]), dtype=bool)
    taken[_range(call, len(taken))] = True
    return taken_of(smaller, x[dim], dim, taken)


def taken_of(smaller: Smaller, labels: Labels, dim: int, taken: Any) -> Changed:
    """A slice that takes those of the positions that are left."""
    node = smaller.call.node
    left = np.flatnonzero(taken[smaller.stays(labels)])
    start, end = (int(left[0]), int(left[-1]) + 1) if left.size else (0, 0)
    return Changed(aten.slice.Tensor, (node.args[0], dim, start, end))


@rule(aten.slice_scatter.default, aten.select_scatter.default)
def scattered(call: Call) -> Dims:
    """Something is written over some positions of a dimension, which stay."""
    x, source = call.first(), call.dims(call.arguments["src"])
    dim = call.arguments["dim"] % len(x)
    call.fix(x[dim], "written over in part")
    if len(source) == len(x):
        call.fix(source[dim], "written over others")
        source = (*source[:dim], *source[dim + 1 :])
    for labels, written in zip((*x[:dim], *x[dim + 1 :]), source, strict=True):
        call.couple(labels, written)
    return x


@rule(aten.narrow.default)
def narrow(call: Call) -> Dims:
    """A range of positions."""
    start, length = number(call.arguments["start"]), number(call.arguments["length"])
    return along(call.first(), call.arguments["dim"], lambda labels: labels[start:][:length])


@resize(aten.narrow.default)
def narrow_less(smaller: Smaller) -> Changed | None:
    """The range is another one."""
    call = smaller.call
    x, dim = call.first(), call.arguments["dim"]
    if not smaller.shrinks(x[dim]):
        return None
    taken = np.zeros(len(x[dim]), dtype=bool)
    taken[call.arguments["start"] :][: call.arguments["length"]] = True
    return taken_of(smaller, x[dim], dim, taken)


@rule(aten.flip.default)
def flip(call: Call) -> Dims:
    """The other way round."""
    x = call.first()
    for dim in call.arguments["dims"]:
        x = along(x, dim, lambda labels: labels[::-1])
    return x


@rule(aten.roll.default)
def roll(call: Call) -> Dims:
    """In a circle: positions of such a dimension are neighbours, so they stay."""
    x = call.first()
    for dim in call.arguments["dims"] or range(len(x)):
        call.fix(x[dim], "positions are neighbours")
    return x


@rule(aten.index_select.default)
def index_select(call: Call) -> Dims:
    """Chosen by a tensor: positions have to keep their numbers."""
    return _chosen(call, call.arguments["dim"])


@rule(aten.gather.default)
def gather(call: Call) -> Dims:
    """Chosen by a tensor, element by element: all has to stay."""
    x = call.first()
    for labels in (*x, *call.dims(call.arguments["index"])):
        call.fix(labels, "chosen by number")
    return tuple(fixed(size) for size in call.sizes)


def _chosen(call: Call, dim: int) -> Dims:
    x = call.first()
    call.fix(x[dim], "chosen by number")
    return along(x, dim, lambda labels: fixed(call.sizes[dim]))


@rule(aten.index.Tensor)
def index(call: Call) -> Dims:
    """Chosen by tensors: those dimensions stay, the others are as they were."""
    x, indices = call.first(), call.arguments["indices"]
    chosen = [dim for dim, tensor in enumerate(indices) if tensor is not None]
    if chosen != list(range(chosen[0], chosen[-1] + 1)):
        raise UnclearError("dimensions apart are indexed together")
    for dim in chosen:
        call.fix(x[dim], "chosen by number")
        for labels in call.dims(indices[dim]):
            call.fix(labels, "numbers of positions")
    new = len(call.sizes) - (len(x) - len(chosen))
    made = tuple(fixed(size) for size in call.sizes[chosen[0] : chosen[0] + new])
    return (*x[: chosen[0]], *made, *x[chosen[-1] + 1 :])


@rule(aten.constant_pad_nd.default, aten.pad.default)
def pad(call: Call) -> Dims:
    """Constants around it, which stay; anything else repeats neighbours."""
    x, amounts = call.first(), call.arguments["pad"]
    constant = call.arguments.get("mode", "constant") == "constant"
    for i in range(len(amounts) // 2):
        before, after = number(amounts[2 * i]), number(amounts[2 * i + 1])
        x = _padded(call, x, len(x) - 1 - i, (before, after), constant)
    return x


def _padded(call: Call, x: Dims, dim: int, amounts: tuple[int, int], constant: bool) -> Dims:
    if amounts == (0, 0):
        return x
    if not constant or min(amounts) < 0:
        call.fix(x[dim], "neighbours in space")
        return along(x, dim, lambda labels: fixed(len(labels) + sum(amounts)))
    before, after = map(fixed, amounts)
    return along(x, dim, lambda labels: np.concatenate([before, labels, after]))


@rule(aten.expand.default)
def expand(call: Call) -> Dims:
    """Dimensions of size 1 are repeated: the copies stay."""
    x = call.first()
    new = len(call.sizes) - len(x)
    old = zip(x, call.sizes[new:], strict=True)
    made = tuple(fixed(size) for size in call.sizes[:new])
    return (*made, *(labels if len(labels) == size else fixed(size) for labels, size in old))


@resize(aten.expand.default)
def expand_less(smaller: Smaller) -> Changed | None:
    """Sizes that are written out change; -1 says that one stays as it comes."""
    call = smaller.call
    labels = call.trace.values[call.node]
    assert isinstance(labels, tuple)
    sizes = call.arguments["size"]
    changed = [-1 if smaller.shrinks(each) else s for s, each in zip(sizes, labels, strict=True)]
    return Changed(call.node.target, (call.node.args[0], changed))


@rule(aten.repeat.default)
def repeat(call: Call) -> Dims:
    """Whole copies behind one another, of which positions go together."""
    x, times = call.first(), call.arguments["repeats"]
    new = len(times) - len(x)
    made = tuple(fixed(size) for size in call.sizes[:new])
    pairs = zip(x, times[new:], call.sizes[new:], strict=True)
    return (*made, *(_tiled(labels, count, size) for labels, count, size in pairs))


def _tiled(labels: Labels, count: Any, size: int) -> Labels:
    if is_free(labels):
        return np.tile(labels, number(count))
    return fixed(size)


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(call: Call) -> Dims:
    """Copies of each position beside one another."""
    dim, times = call.arguments["dim"], number(call.arguments["repeats"])
    if dim is None:
        raise UnclearError("it flattens its input")
    return along(call.first(), dim, lambda labels: labels.repeat(times))


@rule(aten.unbind.int)
def unbind(call: Call) -> list[Dims]:
    """All positions, each a tensor: they stay."""
    x = call.first()
    dim = call.arguments["dim"] % len(x)
    call.fix(x[dim], "positions are taken apart")
    return [(*x[:dim], *x[dim + 1 :])] * len(x[dim])
