"""The pass as a whole."""

import copy

import pytest
import torch
from torch import nn

from fxopt.errors import PassError, SettingError
from fxopt.frontend import capture_program
from fxopt.passes import Context, format_pass, parse_passes
from fxopt.testing import check_pass
from fxopt_fold_bn import FoldBN
from fxopt_quantize import QuantConv, Quantize, QuantLinear
from tests.plugins.quantize.support import (
    CPU,
    SqueezeExcite,
    modules,
    quantized,
    relative,
)


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
    assert first.weight_values is other.weight_values
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
