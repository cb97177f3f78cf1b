"""Searches for the ends of a grid: the least squared error, or the least loss of information."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fxopt_quantize.histogram import Histogram
from fxopt_quantize.ranges import LEVELS, Grid, grid_for, middle_grid, minmax_grid

_Ends = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
_Loss = Callable[[Histogram, torch.Tensor, torch.Tensor], torch.Tensor]

_TINY = 1e-20
_SKEW = (LEVELS // 2) / (LEVELS // 2 - 1)  # there is one more level below zero than above
_STEPS = 48  # candidates per search along one end of the range
_ROUNDS = 3  # how often either end is searched, the other held


def histogram_grid(histogram: Histogram, *, symmetric: bool = False) -> Grid:
    """The grid with the least squared error on the values that were seen.

    Clipping a few large values lets all others be rounded less. Both ends of the range are
    searched in turn, over fractions of the smallest and the largest value.

    Args:
        histogram: What was seen.
        symmetric: Whether zero lies in the middle where there are negative values.
    """
    return _search(histogram, squared_errors, symmetric)


def entropy_grid(histogram: Histogram, *, symmetric: bool = False) -> Grid:
    """The grid that keeps the distribution of the values as it is, as nearly as 256 levels can.

    The Kullback-Leibler divergence of what is left from what was seen, as in Migacz, "8-bit
    Inference with TensorRT" (2017), there for symmetric ranges: values beyond the ends count at
    the ends, and the values of a level are taken to be spread evenly over its bins. The bin of
    zero, which any grid meets exactly, is left out.

    Args:
        histogram: What was seen.
        symmetric: Whether zero lies in the middle where there are negative values.
    """
    return _search(histogram, divergences, symmetric)


def _search(histogram: Histogram, loss: _Loss, symmetric: bool) -> Grid:
    low, high = histogram.minimum, histogram.maximum
    if histogram.width == 0.0:
        return minmax_grid(histogram)
    if symmetric and low < 0:
        largest = max(-low, high)
        return middle_grid(_best(histogram, loss, largest, lambda ends: (-ends * _SKEW, ends)))
    for _ in range(_ROUNDS):
        before = (low, high)
        high = _best_high(histogram, loss, low)
        low = _best_low(histogram, loss, high)
        if (low, high) == before:
            break
    return grid_for(low, high)


def _best_high(histogram: Histogram, loss: _Loss, low: float) -> float:
    end = histogram.maximum
    return _best(histogram, loss, end, lambda ends: (torch.full_like(ends, low), ends))


def _best_low(histogram: Histogram, loss: _Loss, high: float) -> float:
    end = histogram.minimum
    return _best(histogram, loss, end, lambda ends: (ends, torch.full_like(ends, high)))


def _best(histogram: Histogram, loss: _Loss, end: float, bounds: _Ends) -> float:
    """The fraction of ``end`` with the least loss; ``bounds`` makes ranges of such ends."""
    if end == 0.0:
        return end
    ends = end * torch.linspace(1.0, 0.0, _STEPS + 1, dtype=torch.float64)[:-1]
    return float(ends[loss(histogram, *bounds(ends)).argmin()])


def squared_errors(histogram: Histogram, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The summed squared error for each pair of ends."""
    values, counts = histogram.filled()
    scale, zero_point = _scales(low, high)
    rounded = torch.clamp(torch.round(values / scale) + zero_point, 0, LEVELS - 1)
    return (((rounded - zero_point) * scale - values).square() * counts).sum(1)


def divergences(histogram: Histogram, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The Kullback-Leibler divergence for each pair of ends, in nats."""
    values, counts = histogram.filled()
    others = (values < 0) | (values > histogram.width)
    values, counts = values[others], counts[others]
    scale, zero_point = _scales(low, high)
    levels = torch.clamp(torch.round(values / scale) + zero_point, 0, LEVELS - 1).long()
    found = [
        _divergence(values, counts, level, float(start), float(end))
        for level, start, end in zip(levels, low, high, strict=True)
    ]
    return torch.stack(found)


def _divergence(
    values: torch.Tensor, counts: torch.Tensor, levels: torch.Tensor, low: float, high: float
) -> torch.Tensor:
    inside = (values >= low) & (values <= high)
    if not bool(inside.any()):
        return torch.tensor(torch.inf, dtype=torch.float64)
    kept, at = counts[inside], levels[inside]
    bins = torch.bincount(at, minlength=LEVELS).clamp(min=1)
    spread = torch.bincount(at, kept, minlength=LEVELS) / bins  # evenly over the bins of a level
    reference = kept.clone()
    reference[0] += counts[values < low].sum()
    reference[-1] += counts[values > high].sum()
    p, q = reference / reference.sum(), spread[at] / kept.sum()
    return (p * torch.log(p / q)).sum()


def _scales(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = ((high - low) / (LEVELS - 1)).clamp(min=_TINY).reshape(-1, 1)
    return scale, torch.round(-low.reshape(-1, 1) / scale)
