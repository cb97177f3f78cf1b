"""The operations of a program, and which of them needs the result of which other one."""

from __future__ import annotations

import operator
from collections.abc import Collection

import networkx as nx
from torch import fx

from fxopt.backends.boundary import is_operation, is_tuple, size_of_input
from fxopt.ir import Program


def is_item(node: fx.Node) -> bool:
    """Whether a node takes one tensor out of a tuple: it goes where the tuple is made."""
    return node.target is operator.getitem and is_tuple(node.args[0])  # type: ignore[arg-type]


def maker(node: fx.Node) -> fx.Node:
    """The operation that an item belongs to; another node itself."""
    while is_item(node):
        node = node.all_input_nodes[0]
    return node


def operation_graph(program: Program) -> nx.DiGraph[fx.Node]:
    """The operations in the order of the program, with an edge from each to those that need it.

    Items are part of the operation that makes their tuple, and sizes of those that use them.
    """
    graph: nx.DiGraph[fx.Node] = nx.DiGraph()
    sources: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in program.nodes:
        needed = frozenset[fx.Node]().union(*(sources[arg] for arg in node.all_input_nodes))
        if is_operation(node) and not is_item(node):
            graph.add_node(node)
            graph.add_edges_from((source, node) for source in needed)
            sources[node] = frozenset({node})
        else:  # some sizes are those of an input, so that nothing has to be computed for them
            sources[node] = needed if size_of_input(node) is None else frozenset()
    return graph


def with_items(program: Program, operations: Collection[fx.Node]) -> frozenset[str]:
    """The names of operations, and of the items that are taken from their results."""
    names = {node.name for node in operations}
    for node in program.nodes:
        if is_item(node) and node.all_input_nodes[0].name in names:
            names.add(node.name)
    return frozenset(names)


def operation_name(program: Program, node: fx.Node) -> str:
    """What a node does, without how: ``Conv2d``, ``aten.rand``."""
    if node.op == "call_module":
        return type(program.leaf(node)).__name__
    name = str(node.target)
    return name.rpartition(".")[0] if name.count(".") > 1 else name
