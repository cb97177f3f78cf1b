"""Calibration data: bad ones, bounded ones."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fxopt.errors import CalibrationError
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context, parse_passes
from fxopt_quantize import Quantize, QuantizeFloats, QuantizeWeights
from tests.plugins.quantize.support import CPU, quantized, relative


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
    result = Quantize(samples=7, calibrator="minmax", weight_bits=8).run(program, context)
    assert result.details["samples"] == 9
    assert result.summary == "1 layers int8, per channel, minmax of 9 samples"
    tasks = ("smoothing", "calibrating", "correcting biases")
    assert lines == [f"{task}: {count} samples" for task in tasks for count in (3, 6, 9)]


class Infinite(nn.Module):
    """A layer yields infinity, which a sigmoid behind the next operations makes finite."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.second, self.side = (nn.Linear(4, 4) for _ in range(3))
        self.third = nn.Linear(4, 4)
        self.first.bias.data[0] = torch.inf

    def forward(self, x):
        y = self.first(x)
        if self.how == "attention":
            y = nn.functional.scaled_dot_product_attention(self.side(x), y, self.second(x))
        elif self.how == "sum":
            y = self.second(torch.relu(y + self.side(x)))
        else:
            y = self.second(y)
        return self.third(torch.sigmoid(torch.nan_to_num(y)))


def run(item, net, x):
    program = capture_program(net.eval(), (x,), {}).clone()
    context = Context(CPU, calibration=Calibration([x], program.signature))
    item.run(program, context)
    program.verify()
    return program


ITEMS = {
    "smoothing": Quantize(least_saving=0.0),
    "plain": Quantize(least_saving=0.0, smoothing=0.0),
    "equalization": Quantize(least_saving=0.0, equalization="activations"),
    "floats": QuantizeFloats(format="fp8_e5m2"),
    "weights": QuantizeWeights(rounding="gptq", bits=8, group=0),
}


@pytest.mark.parametrize("how", ["layer", "sum", "attention"])
@pytest.mark.parametrize("name", ITEMS)
def test_layers_that_the_hint_names_can_be_skipped(name, how):
    torch.manual_seed(0)
    item, net, x = ITEMS[name], Infinite(how), torch.randn(2, 3, 4)
    if how != "attention" or isinstance(item, Quantize):  # the others leave attention alone
        with pytest.raises(CalibrationError, match="is NaN or infinite") as caught:
            run(item, net, x)
        told = caught.value.hint.partition("leave what takes it in float: ")[2]
        (advised,) = parse_passes(told, {item.info.name: type(item)})
        item = replace(item, skip=advised.skip)
    program = run(item, net, x)
    assert relative(program(x)[0], net(x)) < 0.1


def test_not_finite_inputs_of_layers_that_are_equalized_and_of_the_program():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    net[0].bias.data[1] = torch.inf
    with pytest.raises(CalibrationError, match=r"output of %relu (.|\n)*quantize{skip=\['2'\]}"):
        quantized(net, (torch.randn(2, 3, 4, 4),), equalization="activations")
    bad = torch.full((2, 4), torch.nan)
    with pytest.raises(CalibrationError, match=r"output of %input_1 (.|\n)*batch 1(.|\n)*\['0'\]"):
        quantized(nn.Sequential(nn.Linear(4, 4)), (torch.randn(2, 4),), (bad,))
