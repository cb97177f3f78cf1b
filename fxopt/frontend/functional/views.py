"""Views that can be written through: for each, the operation that puts a changed view back.

A view is `v = view(base, ...)`. When `v` is changed to `w`, the base becomes `inverse(base, w)`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.fx import Graph, Node

from fxopt.frontend.functional.infer import emit

aten = torch.ops.aten
Inverse = Callable[[Graph, Node, Node, Node], Node]
"""(graph, the view node, the base's value, the view's new value) -> the base's new value."""


def _identity(graph: Graph, view: Node, base: Node, new: Node) -> Node:
    return new


def _reshape(graph: Graph, view: Node, base: Node, new: Node) -> Node:
    """Shapes the new value like the base: right for every view that keeps the element order."""
    sizes = list(base.meta["val"].shape)
    symbolic = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
    for i in symbolic:
        # one unknown size can be left to reshape
        single = len(symbolic) == 1
        sizes[i] = -1 if single else emit(graph, view, aten.sym_size.int, (base, i))
    return emit(graph, view, aten.reshape.default, (new, sizes))


def _slice(graph: Graph, view: Node, base: Node, new: Node) -> Node:
    return emit(graph, view, aten.slice_scatter.default, (base, new, *view.args[1:]))


def _select(graph: Graph, view: Node, base: Node, new: Node) -> Node:
    return emit(graph, view, aten.select_scatter.default, (base, new, *view.args[1:]))


def _diagonal(graph: Graph, view: Node, base: Node, new: Node) -> Node:
    return emit(graph, view, aten.diagonal_scatter.default, (base, new, *view.args[1:]))


def _narrow(graph: Graph, view: Node, base: Node, new: Node) -> Node:
    dim, start, length = view.args[1:]
    # a negative start counts from the end, where start + length = 0 would mean the beginning
    end = emit_sum(graph, view, start, length)
    return emit(graph, view, aten.slice_scatter.default, (base, new, dim, start, end))


def emit_sum(graph: Graph, like: Node, first: Any, second: Any) -> Any:
    """Adds two sizes, either of which may be a node."""
    if isinstance(first, Node) or isinstance(second, Node):
        return emit(graph, like, operator.add, (first, second))
    total = first + second
    return None if total == 0 and first < 0 else total


def _again(graph: Graph, view: Node, base: Node, new: Node) -> Node:
    """Transpositions undo themselves."""
    assert callable(view.target)
    return emit(graph, view, view.target, (new, *view.args[1:]))


def _permute(graph: Graph, view: Node, base: Node, new: Node) -> Node:
    order = view.args[1]
    assert isinstance(order, (list, tuple))
    rank = len(order)
    back = sorted(range(rank), key=lambda i: int(order[i]) % rank)  # type: ignore[arg-type]
    return emit(graph, view, aten.permute.default, (new, back))


def _complex(graph: Graph, view: Node, base: Node, new: Node) -> Node:
    back = {
        aten.view_as_real.default: aten.view_as_complex.default,
        aten.view_as_complex.default: aten.view_as_real.default,
    }
    return emit(graph, view, back[view.target], (new,))  # type: ignore[index]


INVERSES: dict[Any, Inverse] = {
    aten.alias.default: _identity,
    aten.contiguous.default: _identity,
    aten.detach.default: _identity,
    aten.detach_.default: _identity,
    aten.lift_fresh.default: _identity,
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.diagonal.default: _diagonal,
    aten.narrow.default: _narrow,
    aten.view.default: _reshape,
    aten._unsafe_view.default: _reshape,
    aten.view_as.default: _reshape,
    aten.reshape.default: _reshape,
    aten.reshape_as.default: _reshape,
    aten.flatten.using_ints: _reshape,
    aten.unflatten.int: _reshape,
    aten.squeeze.default: _reshape,
    aten.squeeze.dim: _reshape,
    aten.squeeze.dims: _reshape,
    aten.unsqueeze.default: _reshape,
    aten.transpose.int: _again,
    aten.swapaxes.default: _again,
    aten.t.default: _again,
    aten.numpy_T.default: _again,
    aten.mT.default: _again,
    aten.permute.default: _permute,
    aten.view_as_real.default: _complex,
    aten.view_as_complex.default: _complex,
}


def inverse_of(view: Node) -> Inverse | None:
    """How to write a changed view back into its base, None when that is not known."""
    if view.target in INVERSES:
        return INVERSES[view.target]
    if view.target is operator.getitem:
        return _piece
    base = view.args[0]
    same = isinstance(base, Node) and _same_layout(base, view)
    return _identity if same else None


def _same_layout(base: Node, view: Node) -> bool:
    """An eval-mode dropout, a cast to the same type: operations that return their input."""
    first, second = base.meta.get("val"), view.meta.get("val")
    if not (isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)):
        return False
    return (first.shape, first.stride(), first.dtype) == (
        second.shape,
        second.stride(),
        second.dtype,
    )


def _piece(graph: Graph, view: Node, base: Node, new: Node) -> Node:
    """One of the pieces of a split, chunk or unbind."""
    pieces, index = view.args
    assert isinstance(pieces, Node)
    assert isinstance(index, int)
    values = pieces.meta["val"]
    position = index % len(values)
    dim = pieces.kwargs.get("dim", 0) if not pieces.args[2:] else pieces.args[2]
    if pieces.target is aten.unbind.int:
        dim = pieces.kwargs.get("dim", 0) if not pieces.args[1:] else pieces.args[1]
        return emit(graph, view, aten.select_scatter.default, (base, new, dim, position))
    assert isinstance(dim, int)
    ends = list(accumulate(value.shape[dim] for value in values))
    bounds = (0 if position == 0 else ends[position - 1], ends[position])
    return emit(graph, view, aten.slice_scatter.default, (base, new, dim, *bounds))
