"""The OpenVINO backend: numbers, precisions that really ran, sharing between threads."""

import copy
import importlib.util
from concurrent.futures import ThreadPoolExecutor
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


def test_outputs_agree_for_any_strides_and_are_not_overwritten():
    program, x = small_cnn(), image()
    code = compile_for(program, x)
    first = code(x)
    kept = first[0].clone()
    code(torch.randn_like(x))
    assert torch.equal(first[0], kept)
    torch.testing.assert_close(first, program(x), rtol=1e-4, atol=1e-5)
    strided = x.permute(0, 1, 3, 2)
    for other in (strided, x.contiguous(memory_format=torch.channels_last), x[:, :, ::1]):
        torch.testing.assert_close(code(other), program(other), rtol=1e-4, atol=1e-5)
    assert not code(x.clone().requires_grad_())[0].requires_grad


def test_many_threads_can_call_at_once():
    program = small_cnn()
    code = compile_for(program, image())
    many = [torch.randn(2, 3, 8, 8) for _ in range(64)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda one: code(one), many))
    for one, result in zip(many, results, strict=True):
        torch.testing.assert_close(result, program(one), rtol=1e-4, atol=1e-5)


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


def test_a_fixed_batch_is_converted_for_its_shapes():
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, 12) @ torch.ones(12, 3)

    x = torch.randn(2, 3, 4)
    program = capture_program(Fixed(), (x,), {})
    assert not program.signature.batch
    torch.testing.assert_close(compile_for(program, x)(x), program(x))


def test_a_lowered_module_can_be_deep_copied():
    program, x = small_cnn(), image()
    module = LoweredModule(program, OpenVINO(), CPU)
    expected = module(x)
    twin = copy.deepcopy(module)
    torch.testing.assert_close(twin(x), expected)
    with torch.no_grad():
        twin.fxopt_source.get_submodule("head").weight.zero_()
    torch.testing.assert_close(module(x), expected)


def test_integers_several_inputs_and_outputs_that_are_inputs_or_constants():
    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 4)
            self.register_buffer("fixed", torch.arange(3.0))

        def forward(self, ids, scale, mask):
            y = self.table(ids) * scale
            return {
                "y": y.masked_fill(mask, 0.0),
                "same": ids,
                "row": scale.reshape(-1),
                "fixed": self.fixed,
                "mask": mask,
            }

    ids, scale = torch.randint(0, 10, (2, 5)), torch.rand(2, 1, 1)
    mask = torch.rand(2, 5, 1) > 0.5
    program = capture_program(Lookup(), (ids, scale, mask), {})
    code = compile_for(program, ids, scale, mask)
    before = ids.clone()
    outputs, expected = code(ids, scale, mask), program(ids, scale, mask)
    for output, right in zip(outputs, expected, strict=True):
        assert output.dtype == right.dtype
        torch.testing.assert_close(output, right)
    again = code(ids.flip(1), scale, mask)
    for output, right in zip(outputs, expected, strict=True):
        assert torch.equal(output, right)
    outputs[1].zero_()
    again[1].zero_()
    assert torch.equal(ids, before)


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
