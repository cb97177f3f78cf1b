"""Calibration data: bad ones, bounded ones."""

import pytest
import torch
from torch import nn

from fxopt.errors import CalibrationError
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_quantize import Quantize
from tests.plugins.quantize.support import CPU, quantized


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
