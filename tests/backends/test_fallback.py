"""Kernel truth: a quantized layer that a runtime computes in float is named."""

import importlib.util
import re
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fxopt
import fxopt.api.entry as entry
from fxopt.backends.fallback import find_fallbacks
from fxopt.ir import LeafModule
from fxopt.plugin import Backend, BackendInfo, Executable, Kernel, Lowering, hookimpl
from fxopt.registry import load_registry
from fxopt.report import CandidateRecord, RegionRecord, Report
from tests.building import Builder


class Int8Linear(LeafModule):
    family, precision = "linear", "int8"

    def __init__(self, size):
        super().__init__()
        self.layer = nn.Linear(size, size)

    def forward(self, x):
        return self.layer(x)


def three_layers():
    b = Builder(first=Int8Linear(4), float_layer=nn.Linear(4, 4), last=Int8Linear(4))
    x = b.call("first", b.input("x", 2, 4))
    return b.program(b.call("last", b.call("float_layer", x)))


def linear(*precisions):
    return [Kernel(f"linear_{i}", "FullyConnected", p) for i, p in enumerate(precisions)]


def test_a_layer_that_runs_as_it_should_is_not_named():
    assert find_fallbacks(three_layers(), linear("int8", "f32", "int8")) == ()


def test_a_layer_that_fell_back_is_named():
    assert find_fallbacks(three_layers(), linear("int8", "f32", "bf16")) == ("last runs in bf16",)


def test_where_layers_were_merged_they_are_counted():
    (line,) = find_fallbacks(three_layers(), linear("int8", "f32"))
    assert line.startswith("1 of 2 linear layers do not run in int8: linear_1 (f32)")


def test_kernels_of_another_family_do_not_count():
    convolution = Kernel("conv", "Convolution", "f32")
    assert find_fallbacks(three_layers(), [*linear("int8", "f32", "int8"), convolution]) == ()


def test_nothing_is_claimed_where_kernels_are_not_known():
    assert find_fallbacks(three_layers(), ()) == ()


class Net(nn.Module):
    """One of each family, with all that usually stands between."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.head = nn.Linear(16, 64), nn.Linear(64, 10)

    def forward(self, x):
        x = nn.functional.pad(torch.relu(self.stem(x)), (0, 1, 0, 1))
        x = nn.functional.hardswish(self.depthwise(x) + self.mix(x))
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x)[0]
        return self.head(nn.functional.gelu(self.up(x)).mean(1))


def candidate(report, backend, version):
    candidates = report.regions[0].candidates
    return next(c for c in candidates if (c.backend, c.version) == (backend, version))


INT8_RUNTIMES = {"openvino": "openvino", "onnxruntime": "onnxruntime", "onednn": "torch"}


@pytest.mark.parametrize("backend", INT8_RUNTIMES)
def test_no_layer_falls_back(backend):
    if importlib.util.find_spec(INT8_RUNTIMES[backend]) is None:
        pytest.skip(f"{backend} is not installed")
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(2, 3, 16, 16)
    fast = fxopt.optimize(
        model, (x,), passes="fold_bn,quantize", calibration=[(x,)], backends=[backend]
    )
    record = candidate(fast.report, backend, "lossy")
    assert record.error is not None, record.reason
    assert record.fallbacks == ()
    assert record.precisions["int8"] >= 7


@dataclass(frozen=True)
class Silent(Backend):
    """Says that it takes quantized programs, and runs them in float."""

    info = BackendInfo("silent", ("cpu",))

    def lower(self, program, inputs, target):
        return SilentLowering(program)


class SilentLowering(Lowering):
    def __init__(self, program):
        self._program = program

    def compile(self, inputs):
        return SilentExecutable(self._program)


class SilentExecutable(Executable):
    def __init__(self, program):
        self._program = program

    def __call__(self, *inputs):
        return self._program(*inputs)

    def kernels(self):
        return (Kernel("conv", "Convolution", "f32"), Kernel("matmul", "MatMul", "f32"))


def test_the_report_flags_a_fallback(monkeypatch):
    class Plugin:
        @hookimpl
        def fxopt_backends(self):
            return [Silent]

    registry = load_registry()
    registry.register(Plugin(), "of this test")
    monkeypatch.setattr(entry, "default_registry", lambda: registry)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    x = torch.randn(2, 3, 8, 8)
    fast = fxopt.optimize(
        model, (x,), passes="quantize", calibration=[(x,)], backends=["silent", "eager"]
    )
    record = candidate(fast.report, "silent", "lossy")
    assert record.fallbacks == ("0 runs in f32", "3 runs in f32")


def test_the_report_prints_what_fell_back():
    chosen = CandidateRecord("silent", "lossy", 1.0, fallbacks=("conv1 runs in f32",))
    report = Report("Net", "cpu", "1x3", "quantize", regions=(RegionRecord("net", 2, chosen),))
    assert re.search(r"fell back +net: conv1 runs in f32", str(report))
