"""A batch that OpenVINO divides among streams, and what may be divided."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

from fxopt.backends import LoweredModule
from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt_openvino import OpenVINO
from fxopt_openvino.divide import divisible

TWO = replace(find_target("cpu"), threads=2)


class Net(nn.Module):
    """Convolution and classifier; the first input is an output again."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x, y):
        return self.head(self.conv(x).relu().mean((2, 3)) + y.unsqueeze(1)), x


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.function(x * self.scale)


def captured(module, *inputs):
    return capture_program(module.eval(), inputs, {})


@pytest.fixture
def net():
    torch.manual_seed(0)
    return captured(Net(), *batch(4))


def batch(size):
    return torch.randn(size, 3, 8, 8), torch.randn(size)


@pytest.mark.parametrize("size", [4, 3, 2, 1])
def test_outputs_are_those_of_the_whole_batch(net, size):
    lowered = LoweredModule(net, OpenVINO(streams=2), TWO)
    inputs = batch(size)
    with torch.no_grad():
        torch.testing.assert_close(lowered(*inputs), net(*inputs), rtol=1e-4, atol=1e-5)
    (compiled,) = [lowered.executable(*inputs)._compiled]
    assert compiled.inputs[0].shape[0] == (size // 2 if size % 2 == 0 else size)
    assert compiled.get_property("NUM_STREAMS") == (2 if size % 2 == 0 else 1)


def test_many_threads_can_call_at_once_and_outputs_are_not_overwritten(net):
    lowered = LoweredModule(net, OpenVINO(streams=2), TWO)
    many = [batch(4) for _ in range(32)]
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda one: lowered(*one), many))
        for one, result in zip(many, results, strict=True):
            torch.testing.assert_close(result, net(*one), rtol=1e-4, atol=1e-5)


def test_streams_are_offered_where_the_batch_can_be_divided(net):
    def offered(size, threads=2):
        target = replace(TWO, threads=threads)
        found = OpenVINO().tunings(net, batch(size), target, milliseconds=9.0)
        return [backend.streams for backend in found]

    assert offered(4) == offered(6) == [2]
    assert offered(4, threads=4) == offered(8, threads=4) == [4]
    assert offered(4, threads=6) == [2]
    assert offered(1) == offered(3) == []
    assert OpenVINO(streams=2).tunings(net, batch(4), TWO, milliseconds=9.0) == ()
    assert OpenVINO(streams=2).label == "openvino 2 streams"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: x.softmax(0),
        lambda x: x.flip(0),
        lambda x: x / x.abs().max(),
        lambda x: x @ (x.t() @ x),
        lambda x: torch.cat([x[1:], x[:1]]),
        lambda x: x.sum(0),
        lambda x: torch.cat([x, x]),
        lambda x: (x, x.mean(0)),
    ],
    ids=["mean", "softmax", "flip", "range", "product", "roll", "sum", "twice", "one of two"],
)
def test_what_mixes_samples_is_not_divided(function):
    x = torch.randn(4, 4)
    assert not divisible(captured(Function(function), x), [x])


def test_what_keeps_samples_apart_is_divided():
    x = torch.randn(4, 4)
    program = captured(Function(lambda x: x.softmax(1).relu() + x.amax(1, keepdim=True)), x)
    assert divisible(program, [x])
    assert not divisible(program, [x[:1]])


def test_token_ids_are_spoilt_by_other_ids():
    ids = torch.randint(0, 50, (4, 6))
    program = captured(nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 2)), ids)
    assert divisible(program, [ids])
    assert divisible(program, [torch.ones_like(ids)])
    # it reads the same backwards, and other ids there are none
    program = captured(nn.Embedding(1, 8), torch.zeros_like(ids))
    assert not divisible(program, [torch.zeros_like(ids)])


class Relative(nn.Module):
    """Lengths by the largest or the least one of the batch."""

    def __init__(self, extreme):
        super().__init__()
        self.extreme = extreme

    def forward(self, x, lengths):
        return x * (lengths / self.extreme(lengths)).unsqueeze(1)


@pytest.mark.parametrize("extreme", [torch.max, torch.min])
@pytest.mark.parametrize("lengths", [(6, 6, 6, 6), (3, 5, 6, 4), (6, 5, 3, 4)])
def test_lengths_that_are_relative_to_those_of_others_are_not_divided(extreme, lengths):
    inputs = torch.randn(4, 6), torch.tensor(lengths)
    assert not divisible(captured(Relative(extreme), *inputs), inputs)
