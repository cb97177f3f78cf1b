"""From ranges of activations to scale and zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from fxopt_quantize.formats import UINT8
from fxopt_quantize.histogram import ChannelRange, Histogram

LEVELS = int(UINT8.highest) + 1
_TINY = 1e-20


@dataclass(frozen=True)
class Grid:
    """The 256 values that a tensor is rounded to.

    Attributes:
        scale: Distance between neighbours.
        zero_point: Index of the value zero.
    """

    scale: float
    zero_point: int


class Range(Protocol):
    """The smallest and the largest value that a grid has to cover."""

    minimum: float
    maximum: float


def is_dead(seen: Range | ChannelRange) -> bool:
    """Whether nothing but zeros was seen, which tells no range."""
    return float(torch.as_tensor(seen.maximum - seen.minimum).max()) / (LEVELS - 1) < _TINY


def grid_for(low: float, high: float) -> Grid:
    """The grid whose ends are ``low`` and ``high``, moved so that zero is one of its values.

    A range that holds nothing but zero gets the scale 1 (see :func:`is_dead`).
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (LEVELS - 1)
    if scale < _TINY:
        return Grid(1.0, 0)
    return Grid(scale, min(max(round(-low / scale), 0), LEVELS - 1))


def middle_grid(largest: float) -> Grid:
    """The grid whose zero point is 128 and whose last value is ``largest``."""
    scale = largest / (LEVELS // 2 - 1)
    return Grid(scale, LEVELS // 2) if scale >= _TINY else Grid(1.0, 0)


def minmax_grid(seen: Range, *, symmetric: bool = False) -> Grid:
    """The grid that covers a whole range.

    Args:
        seen: The range.
        symmetric: Whether zero lies in the middle where there are negative values.
    """
    return _covering(seen.minimum, seen.maximum, symmetric)


def percentile_grid(histogram: Histogram, percentile: float, *, symmetric: bool = False) -> Grid:
    """The grid that leaves out the rarest values at either end.

    Args:
        histogram: What was seen.
        percentile: Percent of the values that lie below its upper end, and as many above its
            lower end; with ``symmetric``, percent of the magnitudes that lie within. Where so
            many are zero that nothing else would be left, zeros do not count.
        symmetric: Whether zero lies in the middle where there are negative values.
    """
    if histogram.width == 0.0:
        return minmax_grid(histogram)
    signed, share = histogram.minimum < 0, percentile / 100
    low, high = _quantiles(*histogram.filled(), share, signed, symmetric)
    if max(-low, high) < histogram.width:  # nothing but the bins next to zero
        low, high = _quantiles(*histogram.filled(zeros=False), share, signed, symmetric)
    return _covering(low, high, symmetric)


def channel_grids(minimum: torch.Tensor, maximum: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Scales per channel, and the one zero point: 0 where no channel is negative, else 128.

    A dead channel, which other data may wake, gets the largest scale of the others.
    """
    signed = bool((minimum < 0).any())
    levels = (LEVELS // 2 - 1) if signed else LEVELS - 1
    scale = torch.maximum(-minimum, maximum) / levels
    scale = torch.where(scale < _TINY, scale.max(), scale)
    return scale, LEVELS // 2 if signed else 0


def _covering(low: float, high: float, symmetric: bool) -> Grid:
    return middle_grid(max(-low, high)) if symmetric and low < 0 else grid_for(low, high)


def _quantiles(
    values: torch.Tensor, counts: torch.Tensor, share: float, signed: bool, symmetric: bool
) -> tuple[float, float]:
    """The ends that a share of the values lies below and above, or of the magnitudes within."""
    if signed and symmetric:
        within = _quantile(values.abs(), counts, share)
        return -within, within
    low = _quantile(values, counts, 1 - share) if signed else 0.0
    return low, _quantile(values, counts, share)


def _quantile(values: torch.Tensor, counts: torch.Tensor, share: float) -> float:
    """The smallest value below or at which lies at least a share of all counts."""
    order = values.argsort(stable=True)
    reached = counts[order].cumsum(0)
    index = torch.searchsorted(reached, share * reached[-1])
    return float(values[order][index])
