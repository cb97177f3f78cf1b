"""What thinner layers cost, and which rank is worth it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from fxopt_low_rank.factors import Method, Shape

Strides = Sequence[int]


@dataclass(frozen=True)
class Thin:
    """A layer, as far as it matters for what it costs.

    Attributes:
        weights: How many it has: its multiply-adds at each position of its output.
        channels: How many it yields.
        dense: Its positions for each of the last layer's: more before a stride.
    """

    weights: int
    channels: int
    dense: int = 1


Price = Callable[[Sequence[Thin]], float]
"""What layers cost, one after the other."""


def work(layers: Sequence[Thin]) -> int:
    """Multiply-adds at each position of the output."""
    return sum(each.weights * each.dense for each in layers)


def thin_layers(method: Method, shape: Shape, strides: Strides, rank: int) -> list[Thin]:
    """The layers that stand for one of the given shape at a rank."""
    outputs, inputs, *taps = shape
    dense, mixed = prod(strides), Thin(rank * outputs, outputs)
    if method == "svd":
        return [Thin(rank * inputs * prod(taps), rank), mixed]
    if method == "spatial":
        return [Thin(rank * inputs * taps[0], rank, strides[1]),
                Thin(rank * outputs * taps[1], outputs)]  # fmt: skip
    if method == "cp":
        return [Thin(rank * inputs, rank, dense), Thin(rank * taps[0], rank, strides[1]),
                Thin(rank * taps[1], rank), mixed]  # fmt: skip
    if method == "separable":
        between = rank * inputs
        return [Thin(between * prod(taps), between), Thin(between * outputs, outputs)]
    come, go = (max(1, round(rank * side / max(outputs, inputs))) for side in (inputs, outputs))
    return [Thin(come * inputs, come, dense), Thin(come * go * prod(taps), go),
            Thin(go * outputs, outputs)]  # fmt: skip


def suits(method: Method, shape: Shape) -> bool:
    """Whether a method can be worth it for a weight: those in space need two dimensions of it."""
    taps = shape[2:]
    if method in ("spatial", "cp"):
        return len(taps) == 2 and min(taps) > 1
    return method == "svd" or prod(taps) > 1  # a separable layer or a core needs neighbours


def largest_rank(
    method: Method, shape: Shape, strides: Strides, limit: float, step: int, price: Price = work
) -> int:
    """The largest rank that costs no more than ``limit``: a multiple of ``step`` where that fits.

    Returns:
        0 where even rank 1 costs more.
    """
    most = _most(method, shape)
    fits = lambda rank: price(thin_layers(method, shape, strides, rank)) <= limit  # noqa: E731
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
