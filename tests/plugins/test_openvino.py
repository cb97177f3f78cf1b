"""The OpenVINO backend: numbers, precisions that really ran, sharing between threads."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from torch import nn

from fxopt.backends import LoweredModule
from fxopt.cost import find_target
from fxopt.errors import BackendError
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_openvino import OpenVINO
from fxopt_openvino.kernels import HEAVY
from fxopt_quantize import Quantize
from tests.building import Builder, aten, image, small_cnn

CPU = find_target("cpu")


def compile_for(program, *inputs):
    return OpenVINO().lower(program, inputs, CPU).compile(inputs)


def quantized(program, *batches):
    twin = program.clone()
    calibration = Calibration([(batch,) for batch in batches], program.signature)
    Quantize().run(twin, Context(CPU, calibration=calibration))
    return twin


def test_an_exact_program_runs_in_float32():
    code = compile_for(small_cnn(), image())
    assert code.precisions() == {"f32": 3}
    assert {kernel.precision for kernel in code.kernels()} == {"f32"}


class Residual(nn.Module):
    """Convolutions, a depthwise one, squeeze and excite, a residual sum and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.reduce, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.stem(x).relu(), 2)
        y = nn.functional.hardswish(self.depthwise(x))
        s = nn.functional.adaptive_avg_pool2d(y, 1)
        s = nn.functional.hardsigmoid(self.excite(self.reduce(s).relu()))
        return self.head((self.project(y * s) + x).relu().mean((2, 3)))


def test_every_heavy_operation_of_a_quantized_program_runs_in_int8():
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 3, 24, 24)
    program = quantized(capture_program(model, (x,), {}), x)
    code = compile_for(program, x)
    assert code.precisions() == {"int8": 6}
    between = [k for k in code.kernels() if k.kind in {"Pooling", "Reduce", "Eltwise"}]
    assert between
    assert {kernel.precision for kernel in between} == {"int8"}
    expected = program(x)[0]
    # Rounding ties fall differently in the runtime's kernels: by a step here and there.
    difference = (code(x)[0] - expected).detach()
    assert float(difference.norm() / expected.detach().norm()) < 0.02


def test_skipped_layers_show_as_float():
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 3, 24, 24)
    program = capture_program(model, (x,), {}).clone()
    calibration = Calibration([x], program.signature)
    Quantize(skip=("project",)).run(program, Context(CPU, calibration=calibration))
    code = compile_for(program, x)
    assert code.precisions() == {"int8": 5, "f32": 1}
    assert [k for k in code.kernels() if k.kind in HEAVY and k.precision == "f32"]


@pytest.mark.parametrize("first", [1, 3])
def test_one_conversion_serves_all_batch_sizes(first, monkeypatch):
    import openvino

    program = small_cnn()
    calls = []
    convert = openvino.convert_model

    def counted(*args, **kwargs):
        calls.append(1)
        return convert(*args, **kwargs)

    monkeypatch.setattr(openvino, "convert_model", counted)
    module = LoweredModule(program, OpenVINO(), CPU)
    for batch in (first, 1, 2, 5):
        x = image(batch)
        torch.testing.assert_close(module(x), program(x), rtol=1e-4, atol=1e-5)
    assert len(calls) == 1


def test_what_it_cannot_take_it_says():
    b = Builder()
    double = b.program(b.call(aten.relu.default, b.input("x", 2, 3, dtype=torch.float64)))
    assert "float64" in OpenVINO().unsupported(double, CPU)
    b = Builder()
    noise = b.program(b.call(aten.rand_like.default, b.input("x", 2, 3)))
    assert "random" in OpenVINO().unsupported(noise, CPU)
    assert "cuda" in OpenVINO().unsupported(small_cnn(), replace(CPU, name="cuda"))
    assert OpenVINO().unsupported(small_cnn(), CPU) is None


def test_an_operation_without_conversion_is_a_backend_error():
    b = Builder()
    program = b.program(b.call(aten.special_bessel_j0.default, b.input("x", 2, 3)))
    with pytest.raises(BackendError, match="OpenVINO"):
        compile_for(program, torch.rand(2, 3))


def test_a_missing_runtime_is_named(monkeypatch):
    assert OpenVINO().unavailable() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'fxopt[openvino]'" in OpenVINO().unavailable()
