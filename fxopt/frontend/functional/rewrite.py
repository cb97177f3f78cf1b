"""Makes every in-place operation of a graph functional, views included.

Walking the graph in order, each tensor is either a *root* with its own memory or a *view* of
another tensor. A write to a root replaces its value; a write to a view is put back into its base,
and on to the root. A view taken before the write and read after it is taken again.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from fxopt.frontend.functional.infer import emit, memory_of
from fxopt.frontend.functional.inplace import functional_value, refusal, written_argument
from fxopt.frontend.functional.views import inverse_of
from fxopt.frontend.keep import is_kept


def functionalize(graph: Graph) -> None:
    """Rewrites a graph in place so that nothing in it is in place.

    Args:
        graph: A flat graph of ATen calls with fake values, whose memory tells what aliases what.

    Raises:
        CaptureError: An operation writes in a way that is not understood, or writes to an input,
            a parameter or a buffer.
    """
    if any(written_argument(node) is not None for node in graph.nodes):
        _Functionalizer(graph).run()


@dataclass
class _Known:
    """The value of a tensor, and how many writes to its memory that value has seen."""

    value: Node
    writes: int = 0


class _Functionalizer:
    """The state of one walk; nodes are the graph's original ones, values are their stand-ins."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._base: dict[Node, Node] = {}
        self._target: dict[Node, Node] = {}
        self._known: dict[Node, _Known] = {}
        self._writes: dict[Node, int] = {}
        self._arguments: dict[Node, tuple[Any, Any]] = {}

    def run(self) -> None:
        """Walks the graph, then drops the in-place calls, which nothing reads any more."""
        for node in list(self._graph.nodes):
            with self._graph.inserting_before(node):
                self._visit(node)
        for node in self._target:
            self._graph.erase_node(node)

    def _visit(self, node: Node) -> None:
        self._arguments[node] = (node.args, node.kwargs)
        target = written_argument(node)
        if target is None:
            self._note(node)
            self._refresh(node)
            return
        target = self._target.get(target, target)
        self._target[node] = target  # the call returns the tensor that it writes to
        if not is_kept(node.args[-1]):  # which changes nothing in eval mode
            _refuse_foreign(node, self._root(target))
        self._refresh(node)
        self._write(target, functional_value(self._graph, node, self._read(target)), node)

    def _refresh(self, node: Node) -> None:
        """Lets a node read the current values of its arguments."""
        args, kwargs = self._arguments[node]
        node.args = map_aggregate(args, self._current)
        node.kwargs = map_aggregate(kwargs, self._current)

    def _current(self, argument: Any) -> Any:
        return self._read(argument) if isinstance(argument, Node) else argument

    def _note(self, node: Node) -> None:
        """Records whether a new tensor is a view, by its memory."""
        base = self._find_base(node)
        if base is not None:
            self._base[node] = base
        self._known[node] = _Known(node, self._count(node))

    def _find_base(self, node: Node) -> Node | None:
        if node.target is torch.ops.aten.lift_fresh_copy.default:
            return None
        shared = (n for n in node.all_input_nodes if memory_of(n) & memory_of(node))
        operand = next(shared, None)
        if operand is not None and node.target is operator.getitem:
            return self._base.get(operand, operand)  # a piece is a view of what was split
        return None if operand is None else self._target.get(operand, operand)

    def _root(self, node: Node) -> Node:
        while node in self._base:
            node = self._base[node]
        return node

    def _count(self, node: Node) -> int:
        return self._writes.get(self._root(node), 0)

    def _read(self, node: Node) -> Node:
        node = self._target.get(node, node)
        known = self._known[node]
        if known.writes != self._count(node):
            known = self._known[node] = _Known(self._take_again(node), self._count(node))
        return known.value

    def _take_again(self, view: Node) -> Node:
        args, kwargs = (map_aggregate(a, self._current) for a in self._arguments[view])
        assert callable(view.target)
        return emit(self._graph, view, view.target, args, kwargs)

    def _write(self, node: Node, new: Node, cause: Node) -> None:
        """Puts a new value into a tensor and all those that it is a view of."""
        values = {node: new}
        while node in self._base:
            view, node = node, self._base[node]
            values[node] = self._put_back(view, node, values[view], cause)
        self._writes[node] = self._writes.get(node, 0) + 1
        for member, value in values.items():
            self._known[member] = _Known(value, self._writes[node])

    def _put_back(self, view: Node, base: Node, new: Node, cause: Node) -> Node:
        inverse = inverse_of(view)
        if inverse is None:
            what = f"{cause.target} writes through {view.target}, which cannot be undone"
            raise refusal(cause, what)
        return inverse(self._graph, view, self._read(base), new)


def _refuse_foreign(node: Node, root: Node) -> None:
    if root.op == "placeholder":
        raise refusal(node, f"{node.target} changes the model's input {root.name!r}")
    if root.op == "get_attr":
        raise refusal(node, f"{node.target} changes {root.target!r} of the model in eval mode")
