"""The ways to choose the range of an activation: what is gathered, and what is made of it."""

from __future__ import annotations

from typing import Literal

from fxopt_quantize.calibrate import Observer
from fxopt_quantize.histogram import Histogram, MovingRange
from fxopt_quantize.ranges import Grid, minmax_grid, percentile_grid
from fxopt_quantize.search import entropy_grid, histogram_grid

Calibrator = Literal["auto", "histogram", "entropy", "minmax", "percentile", "moving_average"]


def new_observer(calibrator: Calibrator) -> Observer:
    """What watches a value that has one range for all channels."""
    return MovingRange() if calibrator == "moving_average" else Histogram()


def activation_grid(
    observer: Observer,
    calibrator: Calibrator,
    *,
    symmetric: bool,
    percentile: float,
    linear: bool,
) -> Grid:
    """The grid for a value that was watched.

    Args:
        observer: Of :func:`new_observer`, for the same calibrator.
        calibrator: How to choose.
        symmetric: Whether zero lies in the middle where there are negative values.
        percentile: For the calibrator of that name.
        linear: Whether linear layers alone take it.
    """
    if isinstance(observer, MovingRange):
        return minmax_grid(observer, symmetric=symmetric)
    assert isinstance(observer, Histogram)
    if calibrator == "percentile":
        return percentile_grid(observer, percentile, symmetric=symmetric)
    if calibrator == "auto":
        calibrator = "minmax" if linear else "histogram"
    choose = {"histogram": histogram_grid, "entropy": entropy_grid, "minmax": minmax_grid}
    return choose[calibrator](observer, symmetric=symmetric)
