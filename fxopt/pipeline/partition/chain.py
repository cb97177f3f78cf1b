"""A program as a chain of segments, cut where few tensors go from one side to the other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from torch import fx

from fxopt.backends.boundary import is_free, is_operation, is_tuple, size_of_input
from fxopt.ir import Program

Segment = tuple[fx.Node, ...]

_NARROW = 2  # tensors that may cross a cut

# A segment with less than this part of an even share of the arithmetic is not worth a call.
_LEAST_SHARE = 0.25


def cut_points(program: Program) -> dict[int, int]:
    """Where the operations of ``program``, as they stand in order, can be cut in two.

    Returns:
        How many operations go before each cut, and how many tensors that these compute are needed
        behind it: no more than two, and no tuple. Inputs of the program, attributes and sizes do
        not count, nor does what only the output takes.
    """
    operations = [node for node in program.nodes if is_operation(node)]
    index = {node: i for i, node in enumerate(operations)}
    points: dict[int, int] = {}
    crossing: dict[fx.Node, int] = {}  # with the index of the last operation that needs it
    for i, node in enumerate(operations):
        crossing = {other: last for other, last in crossing.items() if last >= i}
        if i and len(crossing) <= _NARROW and not any(map(is_tuple, crossing)):
            points[i] = len(crossing)
        crossing[node] = _last_use(node, index)
    return points


def segments(
    program: Program, arithmetic: Mapping[fx.Node, int], at_most: int = 8
) -> list[Segment]:
    """The operations of a program as a chain of segments with about as much arithmetic in each.

    Args:
        program: It is not changed.
        arithmetic: Multiply-adds of its operations.
        at_most: How many segments there may be.
    """
    operations = tuple(node for node in program.nodes if is_operation(node))
    weights = [arithmetic[node] for node in operations]
    points, inner = cut_points(program), list[int]()
    for width in range(1, _NARROW + 1):  # one tensor is better, as long as that allows some cuts
        allowed = {point: tensors for point, tensors in points.items() if tensors <= width}
        inner = balanced_cuts(weights, _narrowest(allowed, weights), at_most)
        if 2 * (len(inner) + 1) >= at_most:
            break
    cuts = [0, *inner, len(operations)]
    return [operations[start:end] for start, end in itertools.pairwise(cuts) if start < end]


def balanced_cuts(weights: Sequence[int], points: Sequence[int], at_most: int) -> list[int]:
    """The cuts that divide ``weights`` most evenly: with the least sum of squares.

    Args:
        weights: Of the operations, in order.
        points: Where they may be cut, ascending.
        at_most: How many segments there may be. None may have hardly any of the weight.
    """
    ends = [*points, len(weights)]
    sums = list(itertools.accumulate(weights, initial=0))
    least = _LEAST_SHARE * sums[-1] / at_most
    # best[end] = what the segments up to there come to, and where the cuts between them are
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    found: tuple[float, list[int]] = (math.inf, [])
    for _ in range(at_most if sums[-1] else 0):
        longer: dict[int, tuple[float, list[int]]] = {}
        for end in ends:
            ways = [
                (cost + (sums[end] - sums[start]) ** 2, [*cuts, start] if start else cuts)
                for start, (cost, cuts) in best.items()
                if start < end and sums[end] - sums[start] >= least
            ]
            if ways:
                longer[end] = min(ways)
        best = longer
        found = min(found, best.get(len(weights), found))
    return found[1]


def _narrowest(points: Mapping[int, int], weights: Sequence[int]) -> list[int]:
    """The best of the points between one heavy operation and the next.

    That is where the fewest tensors cross, and the last one of these: what follows a heavy
    operation fuses with it.
    """
    sums = list(itertools.accumulate(weights, initial=0))
    best: dict[int, int] = {}
    for point in sorted(points):
        earlier = best.get(sums[point])
        if earlier is None or points[point] <= points[earlier]:
            best[sums[point]] = point
    return sorted(best.values())


def _last_use(node: fx.Node, index: Mapping[fx.Node, int]) -> int:
    """The index of the last operation that needs a node, if only for its size; -1 for none."""
    uses = [-1]
    for user in node.users:
        if user in index:
            uses.append(index[user])
        elif is_free(user) and size_of_input(user) is None:
            uses.append(_last_use(user, index))
    return max(uses)
