"""Which backend runs which segment of a chain, at the least cost: dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence

Table = Sequence[Sequence[float]]


def cheapest_chain(times: Table, savings: Table) -> tuple[float, list[int]]:
    """The backends, one for each segment, that make a chain as fast as can be.

    Args:
        times: What a segment takes on a backend when it runs alone, by segment and backend;
            infinite where it cannot.
        savings: How much less two neighbours take on the same backend as one region, by the first
            of both and backend.

    Returns:
        What the chain takes, and the index of the backend for each segment.
    """
    ways: list[tuple[float, list[int]]] = [(time, [b]) for b, time in enumerate(times[0])]
    for row, saved in zip(times[1:], savings, strict=True):
        ways = [
            min(
                (cost + time - (saved[b] if path[-1] == b else 0.0), [*path, b])
                for cost, path in ways
            )
            for b, time in enumerate(row)
        ]
    return min(ways)


def seam_savings(
    times: Table, whole: Sequence[float], weights: Sequence[float]
) -> list[list[float]]:
    """What each seam between two segments costs on each backend, so that leaving it out saves it.

    What the segments of a chain take one by one, more than the program in one piece, is spread
    over the seams. So the cost of a chain that stays on one backend is what was measured.

    Args:
        times: As of :func:`cheapest_chain`.
        whole: What the whole program takes on each backend.
        weights: How the cost is spread over the seams.
    """
    totals = [sum(row[b] for row in times) for b in range(len(whole))]
    extra = [
        max(0.0, total - alone) if total < float("inf") else 0.0
        for total, alone in zip(totals, whole, strict=True)
    ]
    return [[cost * weight / sum(weights) for cost in extra] for weight in weights]
