"""Cross-layer equalization."""

import itertools

import pytest
import torch
from torch import nn

from fxopt.frontend import capture_program
from fxopt.passes import Calibration
from fxopt_quantize.calibrate import observe
from fxopt_quantize.channels import input_ranges, output_ranges
from fxopt_quantize.equalize import Equalizer
from tests.plugins.quantize.support import quantized, relative, roundings


class Mobile(nn.Module):
    """Pointwise, depthwise, pointwise, with outlier channels, as after folding batch norms."""

    def __init__(self, activation=nn.ReLU6):
        super().__init__()
        self.expand, self.project = nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.one, self.two = activation(), activation()
        with torch.no_grad():
            self.expand.weight.mul_(torch.logspace(-2, 1, 16)[:, None, None, None])
            self.depthwise.weight.mul_(torch.logspace(2, -1, 16)[:, None, None, None])

    def forward(self, x):
        return x + self.project(self.two(self.depthwise(self.one(self.expand(x)))))


class Others(nn.Module):
    """Groups, a transposed convolution, pooling, two layers behind one, and linear layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=2)
        self.left, self.right = nn.Conv2d(12, 6, 1), nn.ConvTranspose2d(12, 6, 1)
        self.wide, self.narrow = nn.Linear(6, 10), nn.Linear(10, 5)

    def forward(self, x):
        x = nn.functional.leaky_relu(self.grouped(self.stem(x).relu()))
        x = nn.functional.max_pool2d(x, 2)
        x = (self.left(x) + self.right(x)).permute(0, 2, 3, 1)
        return self.narrow(self.wide(x).clamp(0, 0.5))


def equalized(model, x, by):
    """The program in float, before rounding."""
    program = capture_program(model, (x,), {}).clone()
    layers = [
        n for n in program.nodes if n.op == "call_module" and hasattr(program.leaf(n), "weight")
    ]
    equalizer = Equalizer(program, layers)
    observe(program, Calibration([x], program.signature), equalizer, samples=len(x),
            progress=lambda line: None, task="equalizing", remedy=str)  # fmt: skip
    equalizer.equalize(by)
    program.verify()
    return program, equalizer


@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize(
    ("make", "shape", "links"),
    [
        (Mobile, (4, 6, 6), 2),
        (lambda: Mobile(nn.LeakyReLU), (4, 6, 6), 2),
        (Others, (3, 12, 12), 3),
    ],
)
def test_the_numbers_stay(make, shape, links, by):
    torch.manual_seed(0)
    model, x = make().double().eval(), 3 * torch.randn(4, *shape, dtype=torch.float64)
    program, equalizer = equalized(model, x, by)
    assert len(equalizer.links) == links
    other = 9 * torch.randn_like(x)  # cut off where the calibration data were not
    for each in (x, other):
        torch.testing.assert_close(program(each)[0], model(each), rtol=1e-10, atol=1e-10)


def test_linear_layers_without_a_batch():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).double(), torch.randn(8)
    program, equalizer = equalized(model.eval(), x.double(), "activations")
    assert len(equalizer.links) == 1
    torch.testing.assert_close(program(x.double())[0], model(x.double()), rtol=1e-10, atol=1e-10)


def test_weights_are_balanced_as_in_the_paper():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                          nn.Conv2d(8, 2, 1)).double().eval()  # fmt: skip
    program, _ = equalized(model, torch.randn(2, 3, 8, 8, dtype=torch.float64), "weights")
    convs = [program.leaf(node) for node in program.find(nn.Conv2d)]
    for first, second in itertools.pairwise(convs):
        # equation 9: the ranges of both agree in each channel
        torch.testing.assert_close(
            output_ranges(first), input_ranges(second), rtol=0.01, atol=0, check_dtype=True
        )


def test_what_a_depthwise_convolution_takes_has_one_range():
    torch.manual_seed(0)
    model, x = Mobile(nn.ReLU).double().eval(), torch.randn(8, 4, 6, 6, dtype=torch.float64)
    program, _ = equalized(model, x, "activations")
    parts = dict(program.module.named_modules())
    before = model.one(model.expand(x)).amax((0, 2, 3))
    ranges = parts["expand"](x).relu().amax((0, 2, 3))
    kept = before > before.max() / 32  # what is quieter is stretched by no more
    assert 4 < kept.sum() < 16
    torch.testing.assert_close(ranges[kept], ranges.max().expand(int(kept.sum())))
    torch.testing.assert_close(ranges[~kept], 32 * before[~kept])


def test_a_channel_of_tiny_weights_keeps_the_range_for_all():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).double().eval()
    with torch.no_grad():
        model[0].weight[5] = 1e-8
        model[0].bias[5] = model[2].weight[:, 5] = 0.1
    x = torch.randn(16, 3, 8, 8, dtype=torch.float64)
    program, _ = equalized(model, x, "weights")
    torch.testing.assert_close(program(x)[0], model(x), rtol=1e-12, atol=1e-12)
    first, _ = (program.leaf(node) for node in program.find(nn.Conv2d))
    divided = model[0].bias / first.bias
    torch.testing.assert_close(divided[5], divided.median() / 32)
    assert first(x).relu().amax() < 10 * model[0](x).relu().amax()


@pytest.mark.parametrize("by", ["weights", "activations"])
def test_it_helps_where_channels_differ(by):
    torch.manual_seed(0)
    model, x = Mobile().eval(), torch.randn(16, 4, 8, 8)
    plain = relative(quantized(model, (x,))[0](x)[0] - x, model(x) - x)
    equal = relative(quantized(model, (x,), equalization=by)[0](x)[0] - x, model(x) - x)
    assert equal < 0.6 * plain


def test_a_bound_per_channel_goes_where_rounding_cuts_off_as_much():
    torch.manual_seed(0)
    model, x = Mobile().eval(), 3 * torch.randn(16, 4, 8, 8)
    program, _ = quantized(model, (x,), equalization="activations")
    assert not list(program.find(torch.ops.aten.minimum.default))
    assert {"relu_default", "relu_default_1"} <= set(roundings(program))
    assert relative(program(x)[0] - x, model(x) - x) < 0.03


def test_a_bound_per_channel_stays_where_rounding_cuts_off_less():
    torch.manual_seed(0)
    model, x = Mobile().eval(), 3 * torch.randn(16, 4, 8, 8)
    program, _ = quantized(model, (x,), equalization="weights", calibrator="minmax")
    assert list(program.find(torch.ops.aten.minimum.default))


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_rewrite_limit_leaves_the_numbers_right(limit):
    torch.manual_seed(0)
    model, x = Mobile().double().eval(), 3 * torch.randn(4, 4, 6, 6, dtype=torch.float64)
    program = capture_program(model, (x,), {}).clone()
    program.rewrite_limit = limit
    layers = list(program.find(nn.Conv2d))
    Equalizer(program, layers).equalize("weights")
    torch.testing.assert_close(program(9 * x)[0], model(9 * x), rtol=1e-10, atol=1e-10)


class Unfit(nn.Module):
    """Nothing here may be equalized."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Conv2d(4, 4, 1)
        self.one, self.two, self.three, self.four = (nn.Conv2d(4, 4, 1) for _ in range(4))

    def forward(self, x):
        x = self.shared(self.shared(x))
        x = self.one(x)
        x = self.two(x.sigmoid()) + x.mean((2, 3), keepdim=True)
        return self.four(self.three(x).clamp(-1.0, 1.0))


def test_what_does_not_commute_or_is_used_otherwise_is_left_alone():
    model, x = Unfit().eval(), torch.randn(2, 4, 6, 6)
    program, equalizer = equalized(model, x, "weights")
    assert not equalizer.links
    assert torch.equal(program(x)[0], model(x))
