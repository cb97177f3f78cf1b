"""Programs, quantized and lowered, and convolutions to try."""

import torch
from torch import nn

from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_onnxruntime import ONNXRuntime
from fxopt_quantize import Quantize

CPU = find_target("cpu")


def compile_for(program, *inputs, target=CPU):
    return ONNXRuntime().lower(program, inputs, target).compile(inputs)


def captured(model, *inputs):
    torch.manual_seed(0)
    return capture_program(model.eval(), inputs, {})


def quantized(program, *inputs, **settings):
    twin = program.clone()
    calibration = Calibration([inputs], program.signature)
    Quantize(**settings).run(twin, Context(CPU, calibration=calibration))
    return twin


def relative(output, expected):
    return float((output - expected).detach().norm() / expected.detach().norm())


WINDOWS = {
    "1d": (nn.Conv1d(16, 32, 5), (2, 16, 20)),
    "1d, every setting": (nn.Conv1d(16, 33, 3, stride=2, padding=4, dilation=3), (2, 16, 21)),
    "2d": (nn.Conv2d(16, 32, 3, padding=1), (2, 16, 6, 5)),
    "2d, uneven": (nn.Conv2d(16, 32, (3, 2), (1, 2), (0, 1), (2, 1), bias=False), (2, 16, 9, 7)),
    "2d, patches with a rest": (nn.Conv2d(16, 32, 2, stride=2), (2, 16, 7, 9)),
    "3d": (nn.Conv3d(16, 32, 2, padding=1), (2, 16, 3, 4, 3)),
}


class Extremes(nn.Module):
    """What lies between the least and the largest value of each channel of a convolution."""

    def __init__(self, conv, dims, keepdim):
        super().__init__()
        self.conv, self.dims, self.keepdim = conv, dims, keepdim

    def forward(self, x):
        x = self.conv(x)
        return x.amax(self.dims, self.keepdim) - x.amin(self.dims, self.keepdim)
