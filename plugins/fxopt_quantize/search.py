"""Searches for the ends of a grid: the least squared error, or the least loss of information."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from fxopt_quantize.histogram import Histogram
from fxopt_quantize.ranges import LEVELS, Grid, grid_for, middle_grid, minmax_grid

_Ends = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
_Choice = Callable[[Histogram, float, _Ends], float]

_TINY = 1e-20
_SKEW = (LEVELS // 2) / (LEVELS // 2 - 1)  # there is one more level below zero than above
_STEPS = 48  # candidates per search along one end of the range, evenly spread
_RATIO = 1.25  # of the ends below those, which a rare outlier leaves to all other values
_FINER = 16  # candidates around the best one
_WORTH = 0.99  # of the error: bins blur smaller differences
_ROUNDS = 3  # how often either end is searched, the other held


def histogram_grid(histogram: Histogram, *, symmetric: bool = False) -> Grid:
    """The grid with the least squared error on the values that were seen.

    Clipping a few large values lets all others be rounded less. Both ends of the range are
    searched in turn, over fractions of the smallest and the largest value, down to the width of a
    bin, then around the best of them.

    Args:
        histogram: What was seen.
        symmetric: Whether zero lies in the middle where there are negative values.
    """
    return _search(histogram, _least_error, symmetric)


def entropy_grid(histogram: Histogram, *, symmetric: bool = False) -> Grid:
    """The grid that keeps the distribution of the values as it is, as nearly as 256 levels can.

    The Kullback-Leibler divergence of what is left from what was seen, as in Migacz, "8-bit
    Inference with TensorRT" (2017), there for symmetric ranges: values beyond the ends count at
    the ends, and the values of a level are taken to be spread evenly over its bins. The bin of
    zero, which any grid meets exactly, is left out. Ends are searched down to a 48th of the
    largest value: narrower ranges hold too few bins to tell.

    Args:
        histogram: What was seen.
        symmetric: Whether zero lies in the middle where there are negative values.
    """
    return _search(histogram, _least_divergence, symmetric)


def _search(histogram: Histogram, choose: _Choice, symmetric: bool) -> Grid:
    low, high = histogram.minimum, histogram.maximum
    if histogram.width == 0.0:
        return minmax_grid(histogram)
    if symmetric and low < 0:
        largest = max(-low, high)
        return middle_grid(choose(histogram, largest, lambda ends: (-ends * _SKEW, ends)))
    for _ in range(_ROUNDS):
        before = (low, high)
        high = _best_high(histogram, choose, low)
        low = _best_low(histogram, choose, high)
        if (low, high) == before:
            break
    return grid_for(low, high)


def _best_high(histogram: Histogram, choose: _Choice, low: float) -> float:
    end = histogram.maximum
    if end == 0.0:
        return end
    return choose(histogram, end, lambda ends: (torch.full_like(ends, low), ends))


def _best_low(histogram: Histogram, choose: _Choice, high: float) -> float:
    end = histogram.minimum
    if end == 0.0:
        return end
    return choose(histogram, end, lambda ends: (ends, torch.full_like(ends, high)))


def _least_divergence(histogram: Histogram, end: float, bounds: _Ends) -> float:
    """A fraction of ``end``; ``bounds`` makes ranges of such ends."""
    ends = end * _even_fractions()
    return float(ends[divergences(histogram, *bounds(ends)).argmin()])


def _least_error(histogram: Histogram, end: float, bounds: _Ends) -> float:
    """A fraction of ``end``; ``bounds`` makes ranges of such ends."""
    ends = end * torch.cat([_even_fractions(), _small_fractions(histogram.width / abs(end))])
    errors = squared_errors(histogram, *bounds(ends))
    best = int(errors.argmin())
    neighbours = float(ends[max(best - 1, 0)]), float(ends[min(best + 1, len(ends) - 1)])
    finer = torch.linspace(*neighbours, _FINER, dtype=torch.float64)
    finer_errors = squared_errors(histogram, *bounds(finer))
    finest = int(finer_errors.argmin())
    worth = bool(finer_errors[finest] < _WORTH * errors[best])
    return float(finer[finest] if worth else ends[best])


def _even_fractions() -> torch.Tensor:
    return torch.linspace(1.0, 0.0, _STEPS + 1, dtype=torch.float64)[:-1]


def _small_fractions(least: float) -> torch.Tensor:
    """Below the smallest of those evenly spread, down to the least one."""
    count = max(0, math.ceil(-math.log(least * _STEPS) / math.log(_RATIO)))
    return _RATIO ** -torch.arange(1.0, count + 1, dtype=torch.float64) / _STEPS


def squared_errors(histogram: Histogram, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The summed squared error for each pair of ends; zeros err nothing.

    Where steps are narrower than bins, values are taken to be spread evenly over theirs.
    """
    values, counts = histogram.filled(zeros=False)
    scale, zero_point = _scales(low, high)
    narrow = scale[:, 0] < histogram.width
    found = torch.empty_like(low)
    for rows, errors in ((narrow, _spread_errors), (~narrow, _middle_errors)):
        each = errors(values, histogram.width, scale[rows], zero_point[rows])
        found[rows] = (each * counts).sum(1)
    return found


def _middle_errors(
    values: torch.Tensor, width: float, scale: torch.Tensor, zero_point: torch.Tensor
) -> torch.Tensor:
    """The squared error in the middle of each bin."""
    rounded = torch.clamp(torch.round(values / scale) + zero_point, 0, LEVELS - 1)
    return ((rounded - zero_point) * scale - values).square()


def _spread_errors(
    values: torch.Tensor, width: float, scale: torch.Tensor, zero_point: torch.Tensor
) -> torch.Tensor:
    """The mean squared error over each bin."""

    def up_to(x: torch.Tensor) -> torch.Tensor:
        """The integral from zero, in steps: a twelfth for each level, and what is behind one."""
        level = torch.clamp(torch.round(x), -zero_point, LEVELS - 1 - zero_point)
        return level / 12 + (x - level) ** 3 / 3

    ends = ((values + side * width / 2) / scale for side in (-1, 1))
    lower, upper = (up_to(end) for end in ends)
    return (upper - lower) * scale**3 / width


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
