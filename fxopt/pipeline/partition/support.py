"""Partition by support: what a backend can take of a program some of whose nodes it refuses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from fxopt.backends import Backend, cut_region
from fxopt.backends.boundary import is_operation, is_tuple
from fxopt.cost import Target, multiply_adds
from fxopt.ir import Program
from fxopt.pipeline.partition.operations import (
    maker,
    operation_graph,
    operation_name,
    with_items,
)
from fxopt.pipeline.partition.parts import convex_parts

# A call of lowered code costs about 30 microseconds more than the work in it, in which time a core
# does millions of multiply-adds. A part with fewer is only worth it in a program that has few.
_FEW = 1_000_000
_SMALL_SHARE = 0.01


@dataclass(frozen=True)
class Partition:
    """What a backend takes of a program.

    Attributes:
        parts: Names of the nodes of each part, in order.
        outside: For each operation that stays out what it is, and why: ``aten.rand draws random
            numbers``.
    """

    parts: tuple[frozenset[str], ...]
    outside: tuple[str, ...]


def partition(program: Program, backend: Backend, target: Target) -> Partition:
    """The largest convex parts that ``backend`` supports and that are worth a call.

    Args:
        program: It is not changed.
        backend: Says of each node whether it refuses it, and of each part whether it supports it.
        target: What is lowered for.
    """
    graph = operation_graph(program)
    reasons = _refusals(program, graph, backend, target)
    candidates = convex_parts(graph, reasons) if reasons else []
    arithmetic = multiply_adds(program) if candidates else {}
    least = min(_FEW, _SMALL_SHARE * sum(arithmetic.values()))
    parts = []
    for part in candidates:
        if sum(arithmetic[node] for node in part) > least:
            names = with_items(program, part)
            region = cut_region(program, [node for node in program.nodes if node.name in names])
            reason = backend.unsupported(region.program, target)
        else:
            reason = "has too little arithmetic around it"
        if reason is None:
            parts.append(names)
        else:
            reasons |= dict.fromkeys(part, reason)
    outside = [f"{operation_name(program, n)} {reasons[n]}" for n in graph if n in reasons]
    return Partition(tuple(parts), tuple(outside))


def _refusals(
    program: Program, operations: Iterable[fx.Node], backend: Backend, target: Target
) -> dict[fx.Node, str]:
    reasons: dict[fx.Node, str] = {}
    for node in program.nodes:
        if is_operation(node):
            reason = backend.refuses(program, node, target)
            if reason is not None:
                reasons.setdefault(maker(node), reason)
    for node in operations:
        for other in filter(is_tuple, node.all_input_nodes):
            reasons.setdefault(node, "takes a tuple, which no region can be given")
            reasons.setdefault(maker(other), "makes a tuple, which no region can pass on")
    return reasons
