"""Models in float16 and bfloat16 are rounded as well as those in float32."""

import pytest
import torch
from torch import nn

from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_quantize import Quantize, QuantizeWeights
from fxopt_quantize.formats import FLOATS, INT8, signed
from fxopt_quantize.halves import storable, wide
from fxopt_quantize.moments import second_moments
from fxopt_quantize.weight_only.grouped import quantize_groups
from fxopt_quantize.weights import quantize_weight
from tests.plugins.quantize.support import CPU, relative

HALVES = [torch.float16, torch.bfloat16]
FORMATS = [INT8, signed(4), FLOATS["fp8_e4m3"], FLOATS["fp8_e5m2"]]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Net(nn.Module):
    """Channels that depend on each other, of very different sizes."""

    def __init__(self):
        super().__init__()
        self.mix, self.conv = nn.Linear(8, 16), nn.Conv1d(16, 16, 3, padding=1)
        self.norm, self.first, self.last = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 8)

    def forward(self, x):
        x = self.conv(self.mix(x).transpose(1, 2)).transpose(1, 2)
        return self.last(self.first(self.norm(x).relu()).relu())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("largest", [5.0, 0.007, 1e-4, 5e-6])
@pytest.mark.parametrize("number", FORMATS, ids=lambda number: number.name)
def test_small_channels_are_not_dead(dtype, largest, number):
    weight = ((torch.rand(8, 128) * 2 - 1) * largest).to(dtype)
    found, other = quantize_weight(weight, 0, number), quantize_weight(weight.float(), 0, number)
    assert found.scale.dtype == dtype
    values = found.values.double() * found.scale.double()
    expected = other.values.double() * other.scale.double()
    exact = weight.double()
    assert relative(values, exact) < 1.2 * relative(expected, exact)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("largest", [5.0, 0.007, 1e-4, 5e-6])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_small_groups_are_not_dead(dtype, largest, bits, symmetric):
    weight = (torch.randn(8, 128) ** 3 * largest / 50).to(dtype)
    found = quantize_groups(weight, bits, 32, symmetric)
    assert found.scale.dtype == found.values().dtype == dtype
    exact = weight.double()
    expected = relative(quantize_groups(exact, bits, 32, symmetric).values(), exact)
    assert relative(found.values().double(), exact) < 1.2 * expected


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32, torch.float64])
def test_scales_are_those_that_will_be_stored_and_cut_nothing_off(dtype):
    scale = wide(torch.logspace(-50, 3, 2000, dtype=torch.float64).to(dtype))
    scale[0] = 0
    found = storable(scale, dtype)
    assert torch.equal(found.to(dtype).to(scale.dtype), found)
    dead = scale < torch.finfo(scale.dtype).tiny
    assert dead.any()
    assert (found[dead] == 1).all()
    small = (scale < torch.finfo(dtype).tiny) & ~dead
    assert small.any() == (dtype == torch.float16)
    assert (found[small] >= scale[small]).all()
    torch.testing.assert_close(found[~dead], scale[~dead], rtol=0, atol=2.0**-24)


@pytest.mark.parametrize("dtype", HALVES)
def test_moments_are_gathered_in_float32(dtype):
    columns = (torch.randn(8, 500) * 300).to(dtype)
    found = second_moments(columns)
    assert found.dtype == torch.float32
    exact = columns.double()
    torch.testing.assert_close(found.double(), exact @ exact.t() / 500, rtol=1e-4, atol=1)
    assert not second_moments(columns[:, :0]).any()


def errors_of(settings, dtype, x, model):
    """How far outputs are off in float32 and in another dtype."""
    errors = []
    for kind in (torch.float32, dtype):
        inputs = x.to(kind)
        program = capture_program(model.to(kind).eval(), (inputs,), {}).clone()
        exact = program(inputs)[0]
        settings.run(program, Context(CPU, calibration=Calibration([inputs], program.signature)))
        program.verify()
        result = program(inputs)[0]
        assert result.dtype == kind
        errors.append(relative(result.double(), exact.double()))
    return errors


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "settings",
    [
        Quantize(),
        Quantize(rounding="gptq", weight_bits=4),
        QuantizeWeights(bits=3, group=16, rounding="gptq"),
    ],
    ids=["nearest", "gptq", "groups"],
)
def test_passes_do_as_well_as_in_float32(dtype, settings, size):
    expected, error = errors_of(settings, dtype, torch.randn(16, 10, 8) * size, Net())
    assert error < 1.3 * expected + torch.finfo(dtype).eps


def test_adaround_does_as_well_as_in_float32():
    settings, x = Quantize(rounding="adaround", weight_bits=4), torch.randn(64, 8)
    x = 10 * x @ (torch.ones(8, 8) + 0.3 * torch.randn(8, 8))
    expected, error = errors_of(settings, torch.float16, x, nn.Linear(8, 8))
    assert error < 1.3 * expected + torch.finfo(torch.float16).eps
