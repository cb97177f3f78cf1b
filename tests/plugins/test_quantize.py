"""quantize: its arithmetic against integers, its calibration against brute force, its placement."""

import copy
import itertools
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt.cost import find_target
from fxopt.errors import CalibrationError, PassError, SettingError
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context, format_pass, parse_passes
from fxopt.testing import check_pass
from fxopt_fold_bn import FoldBN
from fxopt_quantize import FakeQuantize, FakeQuantizePerChannel, QuantConv, Quantize, QuantLinear
from fxopt_quantize.calibrate import observe
from fxopt_quantize.calibrators import Calibrator
from fxopt_quantize.histogram import Histogram, MovingRange
from fxopt_quantize.ranges import Grid, grid_for, minmax_grid, percentile_grid
from fxopt_quantize.search import divergences, entropy_grid, histogram_grid
from fxopt_quantize.smooth import Smoother
from fxopt_quantize.weights import quantize_weight

CPU = find_target("cpu")


def quantized(model, *batches, context=None, **fields):
    """The program of ``model``, quantized on ``batches``, and what the pass reports."""
    torch.manual_seed(0)
    program = capture_program(model.eval(), batches[0], {}).clone()
    calibration = Calibration(list(batches), program.signature)
    result = Quantize(**fields).run(program, context or Context(CPU, calibration=calibration))
    program.verify()
    return program, result


def roundings(program):
    """Names of the nodes whose values are rounded, and by what."""
    kinds = (FakeQuantize, FakeQuantizePerChannel)
    return {_plain_name(node.args[0]): program.leaf(node) for node in program.find(*kinds)}


def modules(program, kind):
    return [program.leaf(node) for node in program.find(kind)]


def relative(one, other):
    return float((one - other).detach().norm() / other.detach().norm())


# -- arithmetic ------------------------------------------------------------------------------


def integers(x, grid):
    """uint8 values of a tensor, by NumPy."""
    return np.clip(np.rint(x.numpy() / np.float32(grid.scale)) + grid.zero_point, 0, 255).astype(
        int
    )


def integer_conv(x, w, stride, padding, groups, zero_point):
    """A convolution of integers, loop by loop; padding is real zeros."""
    x = np.pad(x - zero_point, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out_channels, in_group, kh, kw = w.shape
    height, width = (
        (size - k) // stride + 1 for size, k in zip(x.shape[2:], (kh, kw), strict=True)
    )
    result = np.zeros((x.shape[0], out_channels, height, width), dtype=np.int64)
    for o, i, j in itertools.product(range(out_channels), range(height), range(width)):
        first = o // (out_channels // groups) * in_group
        rows = slice(i * stride, i * stride + kh)
        columns = slice(j * stride, j * stride + kw)
        result[:, o, i, j] = (x[:, first : first + in_group, rows, columns] * w[o]).sum((1, 2, 3))
    return result


@settings(max_examples=25, deadline=None)
@given(
    channels=st.sampled_from([(1, 2, 1), (3, 4, 1), (4, 4, 2), (4, 8, 4)]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_convolution_gives_what_integers_give(channels, kernel, stride, padding, seed):
    torch.manual_seed(seed)
    inputs, outputs, groups = channels
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
    x = torch.randn(2, inputs, 6, 5) + 0.5
    grid = grid_for(float(x.min()) * 0.9, float(x.max()) * 0.9)
    weight = quantize_weight(conv.weight)
    layer = QuantConv(conv, weight)
    got = layer(FakeQuantize(grid.scale, grid.zero_point)(x))
    sums = integer_conv(
        integers(x, grid),
        weight.values.numpy().astype(int),
        stride,
        padding,
        groups,
        grid.zero_point,
    )
    scales = weight.scale.reshape(1, -1, 1, 1).double().numpy() * grid.scale
    expected = sums * scales + conv.bias.detach().double().reshape(1, -1, 1, 1).numpy()
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 1000))
def test_a_linear_layer_gives_what_integers_give(sizes, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(*sizes)
    x = torch.randn(3, sizes[0])
    grid = grid_for(float(x.min()), float(x.max()))
    weight = quantize_weight(linear.weight)
    got = QuantLinear(weight, linear.bias)(FakeQuantize(grid.scale, grid.zero_point)(x))
    sums = (integers(x, grid) - grid.zero_point) @ weight.values.numpy().astype(int).T
    scales = weight.scale.reshape(1, -1).double().numpy() * grid.scale
    expected = sums * scales + linear.bias.detach().double().numpy()
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_weights_use_a_symmetric_grid_and_survive_dead_channels():
    weight = torch.tensor([[1.0, -2.0], [0.0, 0.0], [1e-42, 0.0], [3.0, 3.0]])
    rounded = quantize_weight(weight)
    assert rounded.values.dtype == torch.int8
    assert rounded.values.abs().max() == 127
    torch.testing.assert_close(rounded.values * rounded.scale, weight, rtol=0, atol=2 / 127 / 2)
    assert rounded.scale.flatten()[1] == 1
    assert torch.equal(quantize_weight(-weight).values, -rounded.values)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_convolutions_of_every_dimension_keep_their_geometry(dims, mode):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    torch.manual_seed(0)
    conv = kind(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode=mode)
    x = torch.randn(2, 4, *[9] * dims)
    program, result = quantized(conv, (x,))
    assert result.details["layers"] == 1
    assert relative(program(x)[0], conv(x)) < 0.02


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolutions(dims):
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    torch.manual_seed(0)
    conv = kind(4, 6, 3, stride=2, padding=1, output_padding=1)
    x = torch.randn(2, 4, *[5] * dims)
    program, result = quantized(conv, (x,))
    assert result.details["layers"] == 1
    assert relative(program(x)[0], conv(x)) < 0.02


# -- calibration -----------------------------------------------------------------------------


def histogram_of(*tensors):
    histogram = Histogram()
    for tensor in tensors:
        histogram.update(tensor)
    return histogram


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


# -- bias correction -------------------------------------------------------------------------


def channel_means(y, channel):
    return y.detach().double().movedim(channel, 0).flatten(1).mean(1)


LAYERS = {
    "conv": (lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1), (5, 8, 9, 9), 1),
    "no bias": (lambda: nn.Conv2d(8, 6, 3, bias=False), (5, 8, 9, 9), 1),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), (5, 8, 9, 9), 1),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3), (5, 8, 9, 9), 1),
    "linear": (lambda: nn.Linear(16, 6), (5, 7, 16), -1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_bias_correction_keeps_the_mean_of_every_channel(name):
    torch.manual_seed(0)
    make, shape, channel = LAYERS[name]
    layer, batches = make(), [torch.rand(shape) ** 3 + 0.2, torch.rand(3, *shape[1:])]
    before = copy.deepcopy(layer.state_dict())
    plain, _ = quantized(layer, *[(x,) for x in batches], bias_correction=False)
    program, _ = quantized(layer, *[(x,) for x in batches])
    everything = torch.cat(batches)
    wanted = channel_means(layer(everything), channel)
    shift = (channel_means(plain(everything)[0], channel) - wanted).abs().max()
    left = (channel_means(program(everything)[0], channel) - wanted).abs().max()
    assert left < 1e-6
    assert shift > 100 * left
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


def test_bias_correction_where_rounding_comes_before_the_pooling_and_layers_are_shared():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.conv = nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(self.pool(x)).relu())

    torch.manual_seed(0)
    model, x = Net(), torch.rand(8, 4, 12, 12)
    program, _ = quantized(model, (x,), bias_correction=True)
    (layer,) = {id(m): m for m in modules(program, QuantConv)}.values()
    assert not torch.equal(layer.bias, model.conv.bias)
    assert relative(program(x)[0], model(x)) < 0.02


def test_bias_correction_helps_a_net_whose_errors_add_up():
    torch.manual_seed(0)
    layers = [m for _ in range(8) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), torch.rand(16, 16, 10, 10)
    errors = [
        relative(quantized(model, (x,), bias_correction=on)[0](x)[0], model(x))
        for on in (False, True)
    ]
    assert errors[1] < 0.7 * errors[0]


# -- smoothing -------------------------------------------------------------------------------


class NormedLayers(nn.Module):
    """Two layer norms: one before two linear layers, one whose output is used otherwise, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.left, self.right, self.last = (nn.Linear(16, 16) for _ in range(3))
        with torch.no_grad():
            self.first.weight[3] = 60.0  # the outlier
            self.second.weight[5] = 60.0

    def forward(self, x):
        x = self.first(x)
        x = self.left(x) * self.right(x).sigmoid()
        x = self.second(x)
        return x + self.last(x)


def test_smoothing_moves_outliers_to_the_weights_and_keeps_the_numbers():
    torch.manual_seed(0)
    model, x = NormedLayers().double().eval(), torch.randn(8, 5, 16, dtype=torch.float64)
    program = capture_program(model, (x,), {}).clone()
    layers = [node for node in program.nodes if str(node.target) in ("left", "right", "last")]
    smoother = Smoother(program, layers)
    assert len(smoother) == 1
    observe(program, Calibration([x], program.signature), smoother, samples=8,
            progress=lambda line: None, task="smoothing")  # fmt: skip
    smoother.smooth(0.5)
    torch.testing.assert_close(program(x)[0], model(x), rtol=1e-12, atol=1e-12)
    parts = dict(program.module.named_modules())
    seen = model.first(x).abs().flatten(0, 1).amax(0)
    columns = torch.maximum(model.left.weight.abs().amax(0), model.right.weight.abs().amax(0))
    factors = (seen / columns).sqrt()  # equation 4, with alpha = 0.5
    torch.testing.assert_close(parts["first"].weight, model.first.weight / factors)
    torch.testing.assert_close(parts["left"].weight, model.left.weight * factors)
    assert torch.equal(parts["second"].weight, model.second.weight)


def test_smoothing_helps_where_there_are_outliers():
    torch.manual_seed(0)
    model, x = NormedLayers().eval(), torch.randn(8, 5, 16)
    errors = [relative(quantized(model, (x,), smoothing=s)[0](x)[0], model(x)) for s in (0.0, 0.5)]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("tied", [True, False])
def test_layers_that_share_weights_are_not_smoothed(tied):
    model = NormedLayers()
    if tied:
        model.left.weight = model.last.weight
    program = capture_program(model, (torch.randn(2, 5, 16),), {}).clone()
    layers = [node for node in program.nodes if str(node.target) in ("left", "right", "last")]
    assert len(Smoother(program, layers)) == (0 if tied else 1)


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


def test_not_finite_activations_name_the_layer_and_the_batch():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.second(self.first(x))

    good, bad = torch.randn(2, 4), torch.full((2, 4), torch.inf)
    with pytest.raises(CalibrationError, match=r"%x is NaN or infinite(.|\n)*calibration batch 1"):
        quantized(Net(), (good,), (bad,))
    net = Net()
    net.first.bias.data[0] = torch.nan
    with pytest.raises(CalibrationError, match="first is NaN or infinite"):
        quantized(net, (good,))


def test_calibration_data_that_are_missing_empty_or_misshapen():
    net = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(CalibrationError, match="needs calibration data"):
        quantized(net, (torch.randn(2, 4),), context=Context(CPU))
    program = capture_program(net, (torch.randn(2, 4),), {}).clone()
    with pytest.raises(CalibrationError, match="empty"):
        Quantize().run(program, Context(CPU, calibration=Calibration([], program.signature)))
    wrong = Calibration([torch.randn(2, 5)], program.signature)
    with pytest.raises(CalibrationError, match="does not take calibration batch 0"):
        Quantize().run(program, Context(CPU, calibration=wrong))


def test_samples_bounds_what_is_read_and_progress_is_told():
    net, lines = nn.Sequential(nn.Linear(4, 4)), []
    program = capture_program(net, (torch.randn(2, 4),), {}).clone()
    calibration = Calibration((torch.randn(3, 4) for _ in range(100)), program.signature)
    context = Context(CPU, calibration=calibration, progress=lines.append)
    result = Quantize(samples=7, calibrator="minmax").run(program, context)
    assert result.details["samples"] == 9
    assert result.summary == "1 layers int8, per channel, minmax of 9 samples"
    tasks = ("calibrating", "correcting biases")
    assert lines == [f"{task}: {count} samples" for task in tasks for count in (3, 6, 9)]


# -- placement -------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    """A mobile block: expand, depthwise, squeeze and excite, project, add."""

    def __init__(self):
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.reduce, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.project, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4, 10)

    def forward(self, x):
        y = nn.functional.hardswish(self.expand(x))
        y = nn.functional.hardswish(self.depthwise(y))
        s = nn.functional.adaptive_avg_pool2d(y, 1)
        s = nn.functional.hardsigmoid(self.excite(nn.functional.relu(self.reduce(s))))
        y = nn.functional.max_pool2d(self.project(y * s) + x, 2)
        return self.head(y.mean((2, 3)))


SQUEEZE_EXCITE = """
x               scale, zero middle   -> add expand
hardswish       scale, zero middle -> depthwise
hardswish_1     scale, zero middle   -> adaptive_avg_pool2d mul
adaptive_avg_pool2d scale, zero middle -> reduce
relu            scale, zero free     -> excite
hardsigmoid     scale, zero free     -> mul
mul             scale, zero middle   -> project
project         scale, zero middle   -> add
add             scale, zero middle   -> max_pool2d
mean            scale, zero free     -> head
"""


def placement_text(program):
    lines = []
    for node in program.find(FakeQuantize, FakeQuantizePerChannel):
        leaf = program.leaf(node)
        per_channel = isinstance(leaf, FakeQuantizePerChannel)
        scale = f"{len(leaf.scale)} scales" if per_channel else "scale"
        point = int(leaf.zero_point[0]) if per_channel else leaf.zero_point
        shown = "middle" if point == 128 else "free"
        users = " ".join(sorted(_plain_name(user) for user in node.users))
        lines.append(f"{_plain_name(node.args[0])} {scale}, zero {shown} -> {users}")
    return lines


def _plain_name(node):
    return str(node.target) if node.op == "call_module" else node.name


def test_placement_in_a_mobile_block():
    torch.manual_seed(0)
    program, result = quantized(SqueezeExcite(), (torch.randn(4, 4, 8, 8),))
    expected = [" ".join(line.split()) for line in SQUEEZE_EXCITE.strip().splitlines()]
    assert sorted(placement_text(program)) == sorted(expected)
    assert result.details["layers"] == 6
    assert result.refused == ()


def test_scales_per_channel_for_depthwise_layers_on_request():
    torch.manual_seed(0)
    x = (torch.randn(4, 4, 8, 8),)
    program, _ = quantized(SqueezeExcite(), x, depthwise="channel")
    assert "hardswish 8 scales, zero middle -> depthwise" in placement_text(program)
    others = {name: leaf for name, leaf in roundings(program).items() if name != "hardswish"}
    assert not any(isinstance(leaf, FakeQuantizePerChannel) for leaf in others.values())


def test_sums_between_layer_norms_stay_in_float():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            x = x + self.down(nn.functional.gelu(self.up(self.norm1(x))))
            return self.norm2(x)

    program, _ = quantized(Block(), (torch.randn(4, 5, 8),))
    assert set(roundings(program)) == {"norm1", "gelu"}
    assert roundings(program)["gelu"].zero_point not in (0, 128)


def test_what_is_joined_shares_one_scale():
    class Fork(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.last = nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.last(torch.cat([self.a(x).relu(), 5 * self.b(x).relu()], 1))

    program, _ = quantized(Fork(), (torch.randn(2, 3, 4, 4),))
    scales = [leaf.scale for name, leaf in roundings(program).items() if name != "x"]
    assert len(scales) == 2
    assert scales[0] == scales[1]
    assert "cat" not in roundings(program)


def test_a_value_that_also_leaves_in_float_is_rounded_below_what_passes_it_on():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(2, 2)

        def forward(self, x):
            both = self.first(x).reshape(-1, 2, 2)
            left, right = both.unbind(1)
            return self.last(left), right.softmax(-1)

    x = torch.randn(3, 4)
    program, _ = quantized(Net(), (x,))
    rounded = set(roundings(program))
    assert len(rounded) == 2
    assert "x" in rounded
    assert (rounded - {"x"}).pop().startswith("getitem")


class Attention(nn.Module):
    """Self-attention over heads of one projection."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x, mask):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, self.turn(k), v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def turn(self, k):
        return k


def test_attention_takes_its_inputs_in_int8_but_not_its_mask():
    x = torch.randn(3, 5, 8)
    mask = torch.zeros(3, 1, 5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    model = Attention()
    program, _ = quantized(model, (x, mask))
    assert set(roundings(program)) == {"x", "qkv", "scaled_dot_product_attention"}
    assert relative(program(x, mask)[0], model(x, mask)) < 0.05


def test_attention_stays_in_float_where_its_inputs_are_computed_in_float():
    class Turned(Attention):
        def turn(self, k):
            return k * torch.linspace(0.5, 1, 4)

    program, _ = quantized(Turned(), (torch.randn(3, 5, 8), torch.zeros(3, 1, 5, 5)))
    assert set(roundings(program)) == {"x", "scaled_dot_product_attention"}


@pytest.mark.parametrize(("activations", "points"), [("asymmetric", False), ("symmetric", True)])
def test_the_kind_of_grid_can_be_chosen(activations, points):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Hardswish(), nn.Linear(4, 4), nn.Hardswish(), nn.Linear(4, 4))
    program, _ = quantized(net, (torch.randn(64, 4) * 2,), activations=activations)
    assert all((leaf.zero_point == 128) is points for leaf in roundings(program).values())


# -- the pass --------------------------------------------------------------------------------


def test_skipped_layers_stay_in_float_and_are_reported():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    program, result = quantized(net, (torch.randn(2, 4),), skip=("2",))
    assert [str(node.target) for node in program.find(nn.Linear)] == ["2"]
    assert [str(node.target) for node in program.find(QuantLinear)] == ["0"]
    assert len(result.refused) == 1
    assert "skip" in result.refused[0]
    with pytest.raises(PassError, match="no such layer"):
        quantized(net, (torch.randn(2, 4),), skip=("head",))


def test_layers_that_cannot_be_quantized_are_refused_with_a_reason():
    net = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.Conv2d(4, 2, 1))
    program, result = quantized(net, (torch.randn(2, 4, 3, 3),))
    assert len(modules(program, QuantConv)) == 1
    assert "grouped transposed" in result.refused[0]


def test_tied_weights_and_shared_layers_stay_so():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(self.a(x)))

    model, x = Tied(), torch.randn(8, 4)
    program, result = quantized(model, (x,))
    first, again, other = modules(program, QuantLinear)
    assert first is again
    assert first is not other
    assert first.weight_int8 is other.weight_int8
    assert relative(program(x)[0], model(x)) < 0.1
    assert result.details["layers"] == 3
    twin = program.clone()
    assert torch.equal(twin(x)[0], program(x)[0])


def test_dead_channels_and_constant_inputs():
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 3, groups=3))
    net[0].weight.data[1] = 0
    net[0].bias.data[1] = -1
    net[2].weight.data[2] = 0
    x = torch.zeros(2, 2, 4, 4)
    program, _ = quantized(net, (x,))
    assert torch.isfinite(program(x)[0]).all()
    torch.testing.assert_close(program(x)[0], net(x), rtol=0, atol=0.02)


def test_the_users_model_is_untouched_and_other_batches_work():
    model = SqueezeExcite().eval()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(4, 4, 8, 8)
    program, _ = quantized(model, (x,))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    other = torch.randn(7, 4, 8, 8)
    assert relative(program(other)[0], model(other)) < 0.1
    assert program.weight_bytes() < sum(t.numel() for t in model.parameters()) * 4
    float_state = {name: tensor for name, tensor in model.state_dict().items() if "weight" in name}
    assert not set(float_state) & set(program.module.state_dict())


def test_settings_have_a_text_form():
    known = {"quantize": Quantize}
    item = Quantize(calibrator="minmax", skip=("head", "layer1.*"))
    assert parse_passes(format_pass(item), known) == [item]
    with pytest.raises(SettingError, match="must be at least 1"):
        parse_passes("quantize{samples=0}", known)
    with pytest.raises(SettingError, match="calibrator"):
        parse_passes("quantize{calibrator=guess}", known)


def test_nothing_to_do():
    program = capture_program(nn.ReLU(), (torch.randn(2, 3),), {})
    assert "no convolution" in Quantize().inapplicable(program, Context(CPU))


@pytest.mark.parametrize("check", check_pass(Quantize(), prepare=[FoldBN()]), ids=str)
def test_conformance(check):
    check()
