"""Convex parts: as much of a graph as can go together where some of its nodes must stay out."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import TypeVar

import networkx as nx

T = TypeVar("T", bound=Hashable)


def convex_parts(graph: nx.DiGraph[T], refused: Collection[T]) -> list[set[T]]:
    """Parts that hold all nodes but the refused ones, in order.

    Each is convex (no path between two of its nodes leaves it), no two of them need each other, and
    none could be joined with one that it is next to.

    Args:
        graph: Without cycles.
        refused: Those of its nodes that belong to no part.
    """
    order = list(nx.topological_sort(graph))
    parts = _layers(graph, order, frozenset(refused))
    _join(graph, parts)
    position = {node: index for index, node in enumerate(order)}
    return sorted(parts, key=lambda part: min(position[node] for node in part))


def _layers(graph: nx.DiGraph[T], order: list[T], refused: frozenset[T]) -> list[set[T]]:
    """Convex parts to start from: what is connected within a layer.

    A node's layer grows along each edge that enters or leaves the refused, so no path comes back
    to a layer that it has left.
    """
    layer: dict[T, int] = {}
    for node in order:
        own = int(node in refused)
        before = [layer[other] for other in graph.predecessors(node)]
        layer[node] = max((n + (n + own) % 2 for n in before), default=own)
    taken = [node for node in order if node not in refused]
    parts: list[set[T]] = []
    for number in sorted({layer[node] for node in taken}):
        members = graph.subgraph(node for node in taken if layer[node] == number)
        parts.extend(nx.weakly_connected_components(members))
    return parts


def _join(graph: nx.DiGraph[T], parts: list[set[T]]) -> None:
    """Joins parts that are next to each other, as long as no path between them goes elsewhere."""
    while (pair := _joinable(graph, parts)) is not None:
        first, second = pair
        first |= second
        parts.remove(second)


def _joinable(graph: nx.DiGraph[T], parts: list[set[T]]) -> tuple[set[T], set[T]] | None:
    heads = {next(iter(part)): part for part in parts}
    whole = _contracted(graph, heads)
    for head, part in heads.items():
        for other in whole.successors(head):
            if other in heads and not _has_detour(whole, head, other):
                return part, heads[other]
    return None


def _contracted(graph: nx.DiGraph[T], heads: Mapping[T, set[T]]) -> nx.DiGraph[T]:
    """The graph with each part as one node, its head."""
    head_of = {node: head for head, part in heads.items() for node in part}
    edges = ((head_of.get(a, a), head_of.get(b, b)) for a, b in graph.edges)
    whole: nx.DiGraph[T] = nx.DiGraph()
    whole.add_nodes_from(head_of.get(node, node) for node in graph)
    whole.add_edges_from((a, b) for a, b in edges if a != b)
    return whole


def _has_detour(whole: nx.DiGraph[T], start: T, end: T) -> bool:
    others = (node for node in whole.successors(start) if node != end)
    return any(nx.has_path(whole, other, end) for other in others)
