"""How many multiply-adds thinner layers take, and which rank is worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from fxopt_low_rank.factors import Method, Shape

Strides = Sequence[int]


def cost(method: Method, shape: Shape, strides: Strides, rank: int) -> int:
    """Multiply-adds at each position of the output.

    What comes before a stride is computed at more positions.
    """
    outputs, inputs, *taps = shape
    dense = prod(strides)
    if method == "svd":
        return rank * (inputs * prod(taps) + outputs)
    if method == "spatial":
        return rank * (inputs * taps[0] * strides[1] + outputs * taps[1])
    if method == "cp":
        return rank * (inputs * dense + taps[0] * strides[1] + taps[1] + outputs)
    if method == "separable":
        return rank * inputs * (prod(taps) + outputs)
    come, go = (max(1, round(rank * side / max(outputs, inputs))) for side in (inputs, outputs))
    return come * inputs * dense + come * go * prod(taps) + go * outputs


def suits(method: Method, shape: Shape) -> bool:
    """Whether a method can be worth it for a weight: those in space need two dimensions of it."""
    taps = shape[2:]
    if method in ("spatial", "cp"):
        return len(taps) == 2 and min(taps) > 1
    return method == "svd" or prod(taps) > 1  # a separable layer or a core needs neighbours


def largest_rank(method: Method, shape: Shape, strides: Strides, limit: float, step: int) -> int:
    """The largest rank that costs no more than ``limit``: a multiple of ``step`` where that fits.

    Returns:
        0 where even rank 1 costs more.
    """
    most = _most(method, shape)
    fits = lambda rank: cost(method, shape, strides, rank) <= limit  # noqa: E731
    rank = _last(fits, most)
    return rank - rank % step if rank >= 2 * step else rank


def _most(method: Method, shape: Shape) -> int:
    """The rank at which nothing is lost any more, or nearly."""
    outputs, inputs, *taps = shape
    if method == "separable":
        return min(outputs, prod(taps))
    return max(outputs, inputs) if method == "tucker" else min(outputs, inputs)


def smallest_rank(enough: Callable[[int], bool], most: int) -> int:
    """The smallest rank that is enough; ``most`` where none below is."""
    return min(most, _last(lambda rank: not enough(rank), most - 1) + 1)


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The last number from 1 on of which something holds that holds of all before; 0 if none."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
