"""What the tests of quantize share."""

import torch
from torch import nn

from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_quantize import FakeQuantize, FakeQuantizePerChannel, Quantize
from fxopt_quantize.histogram import Histogram

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
    return {plain_name(node.args[0]): program.leaf(node) for node in program.find(*kinds)}


def modules(program, kind):
    return [program.leaf(node) for node in program.find(kind)]


def relative(one, other):
    return float((one - other).detach().norm() / other.detach().norm())


def plain_name(node):
    return str(node.target) if node.op == "call_module" else node.name


def histogram_of(*tensors):
    histogram = Histogram()
    for tensor in tensors:
        histogram.update(tensor)
    return histogram


class SqueezeExcite(nn.Module):
    """A mobile block: expand, depthwise, squeeze and excite, project, add."""

    def __init__(self):
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.reduce, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.project, self.head = nn.Conv2d(8, 4, 1), nn.Linear(4, 10)
        nn.init.ones_(self.reduce.bias)  # no ReLU is dead then

    def forward(self, x):
        y = nn.functional.hardswish(self.expand(x))
        y = nn.functional.hardswish(self.depthwise(y))
        s = nn.functional.adaptive_avg_pool2d(y, 1)
        s = nn.functional.hardsigmoid(self.excite(nn.functional.relu(self.reduce(s))))
        y = nn.functional.max_pool2d(self.project(y * s) + x, 2)
        return self.head(y.mean((2, 3)))


class Tagger(nn.Module):
    """A recurrent layer that is called on two batches in turn, and a linear layer behind it."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 6)

    def forward(self, x):
        first, state = self.layer(x)
        second, _ = self.layer(x.flip(0), state)
        return self.head(first + second)
