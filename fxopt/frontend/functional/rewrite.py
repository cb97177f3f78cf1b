"""Makes every in-place operation of a graph functional, views included.

Walking the graph in order, each tensor is either a *root* with its own memory or a *view* of
another tensor. A write to a root replaces its value; a write to a view is put back into its base,
and on to the root. A view taken before the write and read after it is taken again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from fxopt.frontend.functional.infer import emit, storage_of, value_of
from fxopt.frontend.functional.inplace import (
    functional_value,
    refusal,
    written_argument,
)
from fxopt.frontend.functional.views import inverse_of


def functionalize(graph: Graph) -> None:
    """Rewrites a graph in place so that nothing in it is in place.

    Args:
        graph: A flat graph of ATen calls with fake values whose memory tells what aliases what.

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
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._base: dict[Node, Node] = {}
        self._known: dict[Node, _Known] = {}
        self._writes: dict[Node, int] = {}

    def run(self) -> None:
        for node in list(self._graph.nodes):
            with self._graph.inserting_before(node):
                self._visit(node)

    def _visit(self, node: Node) -> None:
        target = written_argument(node)
        if target is None:
            self._note(node)
            self._refresh(node)
            return
        _refuse_foreign(node, self._root(target))
        self._refresh(node)
        self._write(target, functional_value(self._graph, node, self._read(target)), node)
        self._base[node] = target  # the call returns the tensor that it wrote to
        self._known[node] = _Known(self._read(target), self._count(target))

    def _refresh(self, node: Node) -> None:
        """Lets a node read the current values of its arguments."""
        args = map_aggregate(node.args, self._current)
        kwargs = map_aggregate(node.kwargs, self._current)
        node.args, node.kwargs = args, kwargs  # type: ignore[assignment]

    def _current(self, argument: Any) -> Any:
        return self._read(argument) if isinstance(argument, Node) else argument

    def _note(self, node: Node) -> None:
        """Records whether a new tensor is a view, by its memory."""
        self._known[node] = _Known(node)
        for operand in node.all_input_nodes:
            if _shares_memory(operand, node):
                self._base[node] = operand
                self._known[node].writes = self._count(operand)
                return

    def _root(self, node: Node) -> Node:
        while node in self._base:
            node = self._base[node]
        return node

    def _count(self, node: Node) -> int:
        return self._writes.get(self._root(node), 0)

    def _read(self, node: Node) -> Node:
        known = self._known[node]
        if known.writes == self._count(node):
            return known.value
        self._known[node] = _Known(self._take_again(node), self._count(node))
        return self._known[node].value

    def _take_again(self, view: Node) -> Node:
        base = self._base.get(view)
        if base is None:
            return self._known[view].value
        if written_argument(view) is not None:  # an in-place call is its target
            return self._read(base)
        args = map_aggregate(view.args, self._current)
        assert callable(view.target)
        return emit(self._graph, view, view.target, args, dict(view.kwargs))  # type: ignore[arg-type]

    def _write(self, node: Node, new: Node, cause: Node) -> None:
        root = self._root(node)
        chain = [node]
        while chain[-1] is not root:
            chain.append(self._base[chain[-1]])
        values = self._written_back(chain, new, cause)
        self._writes[root] = self._writes.get(root, 0) + 1
        for member, value in zip(chain, values, strict=True):
            self._known[member] = _Known(value, self._writes[root])

    def _written_back(self, chain: list[Node], new: Node, cause: Node) -> Iterable[Node]:
        """The new values of a view, its base, its base's base and so on."""
        values = [new]
        for view, base in zip(chain, chain[1:], strict=False):
            if written_argument(view) is not None or _is_pieces(base) is view:
                values.append(values[-1])
                continue
            values.append(self._put_back(view, base, values[-1], cause))
        return values

    def _put_back(self, view: Node, base: Node, new: Node, cause: Node) -> Node:
        inverse = inverse_of(view)
        if inverse is None:
            what = f"{cause.target} writes through {view.target}, which cannot be undone"
            raise refusal(cause, what)
        return inverse(self._graph, view, self._read(base), new)


def _shares_memory(first: Node, second: Node) -> bool:
    return storage_of(first) is not None and storage_of(first) == storage_of(second)


def _is_pieces(node: Node) -> Node | None:
    return None


def _refuse_foreign(node: Node, root: Node) -> None:
    if root.op == "placeholder":
        raise refusal(node, f"{node.target} changes the model's input {root.name!r}")
    if root.op == "get_attr":
        raise refusal(node, f"{node.target} changes {root.target!r} of the model in eval mode")


__all__ = ["functionalize", "value_of"]
