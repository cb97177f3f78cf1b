"""From statistics of activations to scale and zero point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fxopt_quantize.histogram import Histogram

LEVELS = 256
_Bounds = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
_TINY = 1e-20
_SKEW = (LEVELS // 2) / (LEVELS // 2 - 1)  # there is one more level below zero than above
_STEPS = 48  # candidates per search along one end of the range
_ROUNDS = 3  # how often either end is searched, the other held


@dataclass(frozen=True)
class Grid:
    """The 256 values that a tensor is rounded to.

    Attributes:
        scale: Distance between neighbours.
        zero_point: Index of the value zero.
    """

    scale: float
    zero_point: int


def grid_for(low: float, high: float) -> Grid:
    """The grid whose ends are ``low`` and ``high``, moved so that zero is one of its values.

    A range that holds nothing but zero gets the scale 1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (LEVELS - 1)
    if scale < _TINY:
        return Grid(1.0, 0)
    return Grid(scale, min(max(round(-low / scale), 0), LEVELS - 1))


def minmax_grid(histogram: Histogram, *, symmetric: bool = False) -> Grid:
    """The grid that covers every value that was seen.

    Args:
        histogram: What was seen.
        symmetric: Whether zero lies in the middle where there are negative values.
    """
    low, high = histogram.minimum, histogram.maximum
    return _middle_grid(max(-low, high)) if symmetric and low < 0 else grid_for(low, high)


def histogram_grid(histogram: Histogram, *, symmetric: bool = False) -> Grid:
    """The grid with the least squared error on the values that were seen.

    Clipping a few large values lets all others be rounded less. Both ends of the range are
    searched in turn, over fractions of the smallest and the largest value.

    Args:
        histogram: What was seen.
        symmetric: Whether zero lies in the middle where there are negative values.
    """
    low, high = histogram.minimum, histogram.maximum
    if histogram.width == 0.0:
        return minmax_grid(histogram)
    if symmetric and low < 0:
        largest = max(-low, high)
        return _middle_grid(_best(histogram, largest, lambda ends: (-ends * _SKEW, ends)))
    for _ in range(_ROUNDS):
        before = (low, high)
        high = _best_high(histogram, low)
        low = _best_low(histogram, high)
        if (low, high) == before:
            break
    return grid_for(low, high)


def _best_high(histogram: Histogram, low: float) -> float:
    return _best(histogram, histogram.maximum, lambda ends: (torch.full_like(ends, low), ends))


def _best_low(histogram: Histogram, high: float) -> float:
    return _best(histogram, histogram.minimum, lambda ends: (ends, torch.full_like(ends, high)))


def _middle_grid(largest: float) -> Grid:
    """The grid whose zero point is 128 and whose last value is ``largest``."""
    scale = largest / (LEVELS // 2 - 1)
    return Grid(scale, LEVELS // 2) if scale >= _TINY else Grid(1.0, 0)


def _best(histogram: Histogram, end: float, bounds: _Bounds) -> float:
    """The fraction of ``end`` with the least error; ``bounds`` makes ranges of such ends."""
    if end == 0.0:
        return end
    seen = histogram.counts > 0
    ends = end * torch.linspace(1.0, 0.0, _STEPS + 1, dtype=torch.float64)[:-1]
    errors = _errors(histogram.centers()[seen], histogram.counts[seen], *bounds(ends))
    return float(ends[errors.argmin()])


def channel_grids(minimum: torch.Tensor, maximum: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Scales per channel, and the one zero point: 0 where no channel is negative, else 128."""
    signed = bool((minimum < 0).any())
    levels = (LEVELS // 2 - 1) if signed else LEVELS - 1
    scale = torch.maximum(-minimum, maximum) / levels
    scale = torch.where(scale < _TINY, torch.ones_like(scale), scale)
    return scale, LEVELS // 2 if signed else 0


def _errors(
    values: torch.Tensor, counts: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """The summed squared error for each pair of ends."""
    scale = ((high - low) / (LEVELS - 1)).clamp(min=_TINY).reshape(-1, 1)
    zero_point = torch.round(-low.reshape(-1, 1) / scale)
    rounded = torch.clamp(torch.round(values / scale) + zero_point, 0, LEVELS - 1)
    return (((rounded - zero_point) * scale - values).square() * counts).sum(1)
