"""Values that were dead or constant in calibration."""

import pytest
import torch
from torch import nn

from fxopt.errors import CalibrationError
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_quantize import FakeQuantizePerChannel, Quantize, QuantizeFloats
from fxopt_quantize.modules import QuantLayer
from tests.plugins.quantize.support import CPU, modules, quantized, relative, roundings


class Optional(nn.Module):
    """A net with a second input that may be left zero."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.side = nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x, extra):
        y = torch.relu(self.first(x))
        return self.second(y + extra) + self.side(extra)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("calibrator", ["auto", "minmax", "percentile", "moving_average"])
def test_what_takes_an_input_that_was_all_zero_stays_in_float(calibrator):
    net, x = Optional(), torch.randn(4, 3, 8, 8)
    extra = torch.rand(4, 8, 8, 8) * 0.3
    program, result = quantized(
        net, (x, torch.zeros_like(extra)), (x, torch.zeros_like(extra)), calibrator=calibrator
    )
    assert "extra" not in roundings(program)
    assert len(modules(program, QuantLayer)) == 2
    assert result.details["float_layers"] == 1
    told = [line for line in result.refused if "%extra was all zero in calibration" in line]
    assert [line.split(":")[0] for line in told] == ["add", "side"]
    half = x / 2  # which leaves room in the range of the sum
    assert relative(program(half, extra)[0], net(half, extra)) < 0.05


def test_a_live_value_is_rounded_for_others_than_the_one_that_takes_a_dead_one():
    net, x = Optional(), torch.randn(4, 3, 8, 8)
    live, result = quantized(net, (x, torch.randn(4, 8, 8, 8)))
    assert not result.refused
    assert {"relu", "extra", "x"} <= roundings(live).keys()
    dead, _ = quantized(net, (x, torch.zeros(4, 8, 8, 8)))
    assert roundings(dead).keys() == {"x", "add"}


def test_dead_values_behind_what_only_moves_them_are_found():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.other = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x, y, z):
            joined = torch.cat([x.flatten(1), y.flatten(1)], 1)
            return self.head(joined) + self.other(z.flatten(1))

    x, zero = torch.randn(4, 2, 2), torch.zeros(4, 2, 2)
    program, result = quantized(Net(), (x, zero, torch.zeros(4, 2, 4)), least_saving=0.0)
    assert len(result.refused) == 1  # y shares its scale with x, which is alive
    assert result.refused[0].startswith("other: %z was all zero")
    program, result = quantized(Net(), (zero, zero, torch.zeros(4, 2, 4)), least_saving=0.0)
    assert result.details["layers"] == 0
    assert not roundings(program)


def test_a_dead_channel_gets_the_scale_of_the_loudest_one():
    conv, x = nn.Conv2d(4, 4, 3, groups=4), torch.rand(4, 4, 8, 8)
    dead = x * torch.tensor([1.0, 0.0, 3.0, 1.0]).view(1, 4, 1, 1)
    program, result = quantized(conv, (dead,), depthwise="channel", least_saving=0.0)
    (rounding,) = modules(program, FakeQuantizePerChannel)
    assert rounding.scale[1] == rounding.scale.max() == pytest.approx(3 / 255, rel=0.05)
    assert result.details["dead_channels"] == {"%input_1": 1}
    assert result.summary.endswith(", 1 dead channels")
    assert relative(program(x)[0], conv(x)) < 0.05


def test_a_constant_is_rounded_and_told():
    net, x = nn.Sequential(nn.Linear(4, 4)), torch.full((3, 4), -2.5)
    program, result = quantized(net, (x,), smoothing=0.0)
    assert result.details["constant"] == ["%input_1"]
    assert result.summary.endswith(", 1 constant values")
    assert relative(program(x)[0], net(x)) < 0.02
    _, result = quantized(net, (torch.randn(3, 4),))
    assert "constant" not in result.details
    assert "constant" not in result.summary


def test_layers_in_eight_bit_floats_that_take_what_was_all_zero_stay():
    net, x = Optional(), torch.randn(4, 3, 8, 8)
    inputs = (x, torch.zeros(4, 8, 8, 8))
    program = capture_program(net.eval(), inputs, {}).clone()
    context = Context(CPU, calibration=Calibration([inputs], program.signature))
    result = QuantizeFloats().run(program, context)
    program.verify()
    assert result.refused == ("side: %extra was all zero in calibration, which tells no range",)
    assert result.summary == "2 layers in fp8_e4m3, static activations"


@pytest.mark.parametrize("item", [Quantize(), QuantizeFloats()])
def test_batches_without_samples(item):
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    program = capture_program(net, (torch.randn(2, 3, 8, 8),), {}).clone()
    empty = Calibration([torch.zeros(0, 3, 8, 8)] * 2, program.signature)
    with pytest.raises(CalibrationError, match="no sample in any calibration batch"):
        item.run(program, Context(CPU, calibration=empty))
