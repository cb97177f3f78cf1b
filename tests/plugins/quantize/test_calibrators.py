"""Ranges that calibrators find, against brute force and their papers."""

import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt_quantize import FakeQuantize, Quantize
from fxopt_quantize.calibrators import Calibrator
from fxopt_quantize.histogram import MovingRange
from fxopt_quantize.ranges import Grid, grid_for, middle_grid, minmax_grid, percentile_grid
from fxopt_quantize.search import divergences, entropy_grid, histogram_grid, squared_errors
from tests.plugins.quantize.support import histogram_of, quantized, relative


def squared_error(x, grid):
    steps = torch.round(x.double() / grid.scale) + grid.zero_point
    return float(((steps.clamp(0, 255) - grid.zero_point) * grid.scale - x).square().sum())


SAMPLES = {
    "normal": lambda: torch.randn(5000),
    "relu": lambda: torch.randn(5000).relu(),
    "outlier": lambda: torch.cat([torch.randn(5000), torch.tensor([30.0])]),
    "long tail": lambda: torch.randn(5000) ** 3,
    "hardswish": lambda: nn.functional.hardswish(torch.randn(5000) * 2),
    "negative": lambda: -torch.rand(5000) - 1,
}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_histogram_is_as_good_as_brute_force(name):
    torch.manual_seed(0)
    x = SAMPLES[name]()
    ends = np.linspace(0.04, 1, 25)
    lows = ends * min(float(x.min()), 0.0) if x.min() < 0 else [0.0]
    highs = ends * max(float(x.max()), 0.0) if x.max() > 0 else [0.0]
    best = min(
        squared_error(x, grid_for(low, high)) for low, high in itertools.product(lows, highs)
    )
    found = squared_error(x, histogram_grid(histogram_of(x)))
    assert found <= 1.05 * best
    assert found <= 1.02 * squared_error(x, minmax_grid(histogram_of(x)))


@pytest.mark.parametrize("name", ["normal", "outlier", "hardswish"])
def test_a_symmetric_grid_has_zero_in_the_middle_and_is_the_best_of_its_kind(name):
    torch.manual_seed(0)
    x = SAMPLES[name]()
    grid = histogram_grid(histogram_of(x), symmetric=True)
    assert grid.zero_point == 128
    scales = np.linspace(0.05, 1, 100) * float(x.abs().max()) / 127
    assert squared_error(x, grid) <= 1.05 * min(squared_error(x, Grid(s, 128)) for s in scales)


ORDINARY = {
    "normal": lambda: torch.randn(20000),
    "half-normal": lambda: torch.randn(20000).abs(),
    "uniform": lambda: torch.rand(20000) * 2 - 1,
    "image": lambda: torch.randint(0, 256, (20000,)) / 255,
    "laplace": lambda: torch.distributions.Laplace(0.0, 1.0).sample((20000,)),
    "relu": lambda: torch.randn(20000).relu(),
}


def in_even_steps(x, symmetric):
    """The error of the best ends among 48 evenly spread ones, either searched in turn."""
    histogram = histogram_of(x)
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    steps = torch.linspace(1, 0, 49, dtype=torch.float64)[:-1]

    def best(lows, highs):
        lows, highs = torch.broadcast_tensors(*map(torch.as_tensor, (lows, highs)))
        index = squared_errors(histogram, lows.double(), highs.double()).argmin()
        return float(lows[index]), float(highs[index])

    if symmetric and low < 0:
        ends = max(-low, high) * steps
        return squared_error(x, middle_grid(best(-ends * 128 / 127, ends)[1]))
    lowest, highest = low, high
    for _ in range(3):
        low, high = best(low, highest * steps)
        low, high = best(lowest * steps, high)
    return squared_error(x, grid_for(low, high))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ORDINARY)
def test_finer_steps_never_err_more_on_ordinary_values(name, symmetric):
    for seed in range(4):
        torch.manual_seed(seed)
        x = ORDINARY[name]()
        found = histogram_grid(histogram_of(x), symmetric=symmetric)
        assert squared_error(x, found) <= in_even_steps(x, symmetric) * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("symmetric", [True, False])
def test_one_value_far_out_leaves_the_others_their_range(symmetric):
    torch.manual_seed(0)
    x = torch.randn(100_000)
    histogram = histogram_of(x, torch.tensor([1000.0]))
    histogram.counts *= torch.where(histogram.centers() < 999, 1000.0, 1.0)  # among 100 million
    found = histogram_grid(histogram, symmetric=symmetric)
    best = squared_error(x, histogram_grid(histogram_of(x), symmetric=symmetric))
    assert found.scale * 255 < 12
    assert squared_error(x, found) < 1.5 * best


def test_errors_in_steps_narrower_than_bins_are_those_of_values_spread_over_them():
    torch.manual_seed(0)
    histogram = histogram_of(torch.tensor([0.3, -3.4, 5.1, 1000.0]))
    middles, counts = histogram.filled()
    spread = (torch.arange(10_000).double() + 0.5) / 10_000 - 0.5
    values = middles[:, None] + spread * histogram.width
    for low, high in [(-3.0, 5.0), (-1.0, 2.0), (0.0, 40.0), (-8.0, 0.0)]:
        errors = [squared_error(row, grid_for(low, high)) / 10_000 for row in values]
        ends = (torch.tensor([end], dtype=torch.float64) for end in (low, high))
        found = float(squared_errors(histogram, *ends))
        assert found == pytest.approx(float(counts @ torch.tensor(errors).double()), rel=1e-3)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("signed", [True, False])
def test_percentiles_of_values_that_are_nearly_all_zero_are_those_of_the_others(signed, symmetric):
    x = nn.functional.one_hot(torch.arange(30), 20_000).float()
    x = torch.cat([x, -x]) if signed else x
    found = percentile_grid(histogram_of(x), 99.99, symmetric=symmetric)
    rounded = FakeQuantize(found.scale, found.zero_point)(x)
    torch.testing.assert_close(rounded, x, rtol=0.01, atol=0)


def test_what_is_never_negative_uses_all_levels():
    x = torch.rand(1000)
    for symmetric in (True, False):
        assert histogram_grid(histogram_of(x), symmetric=symmetric).zero_point == 0
        assert minmax_grid(histogram_of(x), symmetric=symmetric) == grid_for(0.0, float(x.max()))


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    powers=st.lists(st.integers(-12, 12), min_size=5, max_size=5),
    seed=st.integers(0, 100),
)
@settings(max_examples=50, deadline=None)
def test_the_histogram_depends_neither_on_order_nor_on_batches(sizes, powers, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.randn(size, generator=generator) * 2.0**power
        for size, power in zip(sizes, powers, strict=False)
    ]
    forward, backward = histogram_of(*parts), histogram_of(*reversed(parts))
    whole = histogram_of(torch.cat(parts))
    for other in (backward, whole):
        assert (forward.minimum, forward.maximum, forward.width) == (
            other.minimum, other.maximum, other.width,
        )  # fmt: skip
        assert torch.equal(forward.counts, other.counts)
    if forward.width:
        assert forward.counts.sum() == sum(sizes[: len(parts)])


def divergence(x, low, high):
    """Migacz's, value by value and bin by bin, in NumPy."""
    histogram = histogram_of(x)
    centers, counts = histogram.centers().numpy(), histogram.counts.numpy().copy()
    counts[len(counts) // 2] = 0  # the bin of zero
    scale = (high - low) / 255
    zero_point = np.round(-low / scale)
    inside = [i for i in range(len(counts)) if counts[i] and low <= centers[i] <= high]
    level = {i: min(max(np.round(centers[i] / scale) + zero_point, 0), 255) for i in inside}
    reference = {i: counts[i] for i in inside}
    reference[inside[0]] += counts[centers < low].sum()
    reference[inside[-1]] += counts[centers > high].sum()
    total, kept = sum(reference.values()), sum(counts[i] for i in inside)
    loss = 0.0
    for i in inside:
        mates = [j for j in inside if level[j] == level[i]]
        q = sum(counts[j] for j in mates) / len(mates) / kept
        loss += reference[i] / total * np.log(reference[i] / total / q)
    return loss


@pytest.mark.parametrize("name", ["normal", "outlier", "hardswish"])
def test_the_divergence_is_that_of_the_paper(name):
    torch.manual_seed(0)
    x = SAMPLES[name]()[-700:]
    ends = [(float(x.min()) * a, float(x.max()) * b) for a, b in ((1, 1), (1, 0.6), (0.5, 0.3))]
    found = divergences(histogram_of(x), *torch.tensor(ends, dtype=torch.float64).T)
    assert found.tolist() == pytest.approx([divergence(x, *pair) for pair in ends], rel=1e-9)


def test_an_outlier_is_worth_less_information_than_the_rest():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(20000), torch.tensor([300.0])])
    covered = entropy_grid(histogram_of(x)).scale * 255
    assert covered < 60
    assert minmax_grid(histogram_of(x)).scale * 255 > 300


@pytest.mark.parametrize("percentile", [99.0, 99.9, 100.0])
@pytest.mark.parametrize("name", ["normal", "relu", "long tail", "negative"])
def test_percentiles_are_those_of_the_values(name, percentile):
    torch.manual_seed(0)
    x = SAMPLES[name]()
    histogram = histogram_of(x)
    low, high = np.quantile(x, [1 - percentile / 100, percentile / 100], method="inverted_cdf")
    wanted = grid_for(float(low), float(high))
    found = percentile_grid(histogram, percentile)
    assert found.scale * 255 == pytest.approx(wanted.scale * 255, abs=3 * histogram.width)
    assert abs(found.zero_point - wanted.zero_point) <= 1
    if x.min() < 0:
        within = np.quantile(x.abs(), percentile / 100, method="inverted_cdf")
        middle = percentile_grid(histogram, percentile, symmetric=True)
        assert middle.zero_point == 128
        assert middle.scale * 127 == pytest.approx(within, abs=2 * histogram.width)


def test_moving_averages():
    torch.manual_seed(0)
    batches = [torch.randn(64) * scale for scale in (1.0, 3.0, 2.0, 8.0)]
    moving = MovingRange()
    for batch in batches:
        moving.update(batch)
    low, high = float(batches[0].min()), float(batches[0].max())
    for batch in batches[1:]:
        low, high = 0.9 * low + 0.1 * float(batch.min()), 0.9 * high + 0.1 * float(batch.max())
    assert (moving.minimum, moving.maximum) == pytest.approx((low, high))


@pytest.mark.parametrize("calibrator", get_args(Calibrator))
def test_every_calibrator_gives_a_working_program(calibrator):
    torch.manual_seed(0)
    conv, x = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)),
        torch.randn(4, 3, 9, 9),
    )
    program, _ = quantized(conv, (x,), calibrator=calibrator)
    assert relative(program(x)[0], conv(x)) < 0.1


@pytest.mark.parametrize("percentile", [50.0, 101.0])
def test_a_percentile_that_makes_no_sense(percentile):
    with pytest.raises(ValueError, match="percentile"):
        Quantize(calibrator="percentile", percentile=percentile)


def percentile_of(histogram, symmetric):
    return percentile_grid(histogram, 99.9, symmetric=symmetric)


@pytest.mark.parametrize("grid", [histogram_grid, minmax_grid, entropy_grid, percentile_of])
@pytest.mark.parametrize("value", [0.0, 1e-44, 3.0, -3.0])
def test_constant_values_are_met_exactly(grid, value):
    x = torch.full((2, 5), value)
    for symmetric in (True, False):
        found = grid(histogram_of(x), symmetric=symmetric)
        assert found.scale > 0
        rounded = FakeQuantize(found.scale, found.zero_point)(x)
        torch.testing.assert_close(rounded, x, rtol=0.03, atol=1e-40)
