"""From statistics of activations to scale and zero point."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxopt_quantize.histogram import Histogram

LEVELS = 256
_TINY = 1e-20
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


def minmax_grid(histogram: Histogram) -> Grid:
    """The grid that covers every value that was seen."""
    return grid_for(histogram.minimum, histogram.maximum)


def histogram_grid(histogram: Histogram) -> Grid:
    """The grid with the least squared error on the values that were seen.

    Clipping a few large values lets all others be rounded less. Both ends of the range are
    searched in turn, over fractions of the smallest and the largest value.
    """
    if histogram.width == 0.0:
        return minmax_grid(histogram)
    seen = histogram.counts > 0
    counts, centers = histogram.counts[seen], histogram.centers()[seen]
    fractions = torch.linspace(1.0, 0.0, _STEPS + 1, dtype=torch.float64)[:-1]
    low, high = histogram.minimum, histogram.maximum
    for _ in range(_ROUNDS):
        before = (low, high)
        if histogram.maximum > 0:
            ends = histogram.maximum * fractions
            high = float(ends[_errors(centers, counts, torch.tensor(low), ends).argmin()])
        if histogram.minimum < 0:
            ends = histogram.minimum * fractions
            low = float(ends[_errors(centers, counts, ends, torch.tensor(high)).argmin()])
        if (low, high) == before:
            break
    return grid_for(low, high)


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
    """The summed squared error for each pair of ends; they broadcast against each other."""
    scale = ((high - low) / (LEVELS - 1)).clamp(min=_TINY).reshape(-1, 1)
    zero_point = torch.round(-low.reshape(-1, 1) / scale)
    rounded = torch.clamp(torch.round(values / scale) + zero_point, 0, LEVELS - 1)
    return (((rounded - zero_point) * scale - values).square() * counts).sum(1)
