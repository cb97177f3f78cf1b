"""The ONNX Runtime backend: numbers, precisions that really ran, sharing between threads."""

import importlib.util
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fxopt.backends import LoweredModule
from fxopt.backends.scratch import use_scratch
from fxopt.errors import BackendError
from fxopt.pipeline.partition import partition
from fxopt_onnxruntime import ONNXRuntime, session
from fxopt_onnxruntime.grids import Grid
from fxopt_onnxruntime.kernels import HEAVY, find_kernels
from fxopt_onnxruntime.rules.activations import grid_before
from tests.building import Builder, aten, image, small_cnn
from tests.plugins.attention import Masked, queries_without_keys
from tests.plugins.onnxruntime.support import (
    CPU,
    captured,
    compile_for,
    quantized,
    relative,
)


def test_an_exact_program_runs_in_float32():
    code = compile_for(small_cnn(), image())
    assert code.precisions() == {"f32": 3}
    assert {kernel.precision for kernel in code.kernels()} == {"f32"}


def test_what_runs_writes_no_profile(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = compile_for(small_cnn(), image())
    runtime = code._session.runtime
    assert not runtime.get_session_options().enable_profiling
    assert code.kernels()
    assert not list(tmp_path.iterdir())


def test_builds_of_a_program_share_a_profile(tmp_path, monkeypatch):
    written = []
    write = session._write_profile

    def counted(source, inputs, target, folder):
        written.append(len(inputs[0]))
        return write(source, inputs, target, folder)

    monkeypatch.setattr(session, "_write_profile", counted)
    other = replace(CPU, threads=CPU.threads + 1)
    with use_scratch(tmp_path / "kept"):
        first, again = (compile_for(small_cnn(), image()) for _ in range(2))
        compile_for(small_cnn(), image(), target=other)
        compile_for(small_cnn(), image(3))
    assert first.kernels() == again.kernels() != ()
    assert written == [2, 2]  # rows: no more are needed where the session is for any batch
    compile_for(small_cnn(), image())  # nothing is kept any longer
    assert len(written) == 3


@pytest.mark.parametrize("first", [1, 3])
def test_one_conversion_serves_all_batch_sizes_from_several_threads(first, monkeypatch):
    calls = []
    export = torch.onnx.export

    def counted(*args, **kwargs):
        calls.append(1)
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", counted)
    program = small_cnn()
    module = LoweredModule(program, ONNXRuntime(), CPU)
    module(image(first))
    sizes = [1, 2, 3, 4, 5] * 8
    random.Random(0).shuffle(sizes)
    many = [torch.randn(size, 3, 8, 8) for size in sizes]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(module, many))
    for one, result in zip(many, results, strict=True):
        torch.testing.assert_close(result, program(one), rtol=1e-4, atol=1e-5)
    assert len(calls) == 1


class Attend(nn.Module):
    """Self-attention, with a mask or without."""

    def __init__(self, mask=None, **settings):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.settings = settings
        self.register_buffer("mask", mask)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, **self.settings)
        return self.out(y.transpose(1, 2).flatten(2))


_ALLOWED = torch.ones(7, 7, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    "model",
    [
        Attend(scale=0.3),
        Attend(is_causal=True),
        Attend(_ALLOWED),
        Attend(torch.zeros(7, 7).masked_fill(~_ALLOWED, -3.0)),
    ],
    ids=["scale", "causal", "boolean mask", "float mask"],
)
def test_attention(model):
    x = torch.randn(2, 7, 16)
    program = captured(model, x)
    code = compile_for(program, x)
    torch.testing.assert_close(code(x), program(x), rtol=1e-4, atol=1e-5)
    assert code.precisions() == {"f32": 4}
    assert model.mask is None or "Where" not in {kernel.kind for kernel in code.kernels()}


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("kind", ["boolean", "float"])
def test_queries_that_may_see_nothing_yield_zeros(kind, rank):
    x, mask = queries_without_keys(kind, rank)
    program = captured(Masked(), x, torch.zeros_like(mask) if kind == "float" else mask)
    code = compile_for(program, x, mask)
    assert not program(x, mask)[0][0, :, 1].any()
    torch.testing.assert_close(code(x, mask), program(x, mask), rtol=1e-4, atol=1e-5)


class Residual(nn.Module):
    """Convolutions, a depthwise one, squeeze and excite, a residual sum and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.reduce, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 10)

    def forward(self, x):
        x = F.max_pool2d(self.stem(x).relu(), 2)
        y = F.hardswish(self.depthwise(x))
        s = F.adaptive_avg_pool2d(y, 1)
        s = F.hardsigmoid(self.excite(self.reduce(s).relu()))
        return self.head((self.project(y * s) + x).relu().mean((2, 3)))


def test_every_heavy_operation_of_a_quantized_program_runs_in_int8():
    torch.manual_seed(0)
    x = 8 * torch.randn(2, 3, 24, 24)
    program = quantized(captured(Residual(), x), x)
    code = compile_for(program, x)
    assert code.precisions() == {"int8": 6}
    floats = [kernel for kernel in code.kernels() if kernel.precision != "int8"]
    assert [kernel.kind for kernel in floats] == ["HardSigmoid"]  # of one position a channel
    kinds = {kernel.kind for kernel in code.kernels()}
    assert kinds >= {"QLinearAdd", "QLinearMul", "QLinearGlobalAveragePool", "NhwcMaxPool"}
    # Rounding ties fall differently in the runtime's kernels: by a step here and there.
    assert relative(code(x)[0], program(x)[0]) < 0.02


def test_skipped_layers_show_as_float():
    x = torch.randn(2, 5, 16)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))
    code = compile_for(quantized(captured(model, x), x, skip=("2",)), x)
    assert code.precisions() == {"int8": 1, "f32": 1}
    (left,) = [k for k in code.kernels() if k.kind in HEAVY and k.precision == "f32"]
    assert left.kind == "MatMul"


class Through(nn.Module):
    """Convolution, something, convolution: what stands between two integer kernels."""

    def __init__(self, between, last=None):
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 8, 3, padding=1), last or nn.Conv2d(8, 8, 3)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self.first(4 * x))).amax((2, 3))


class Concat(nn.Module):
    def forward(self, x):
        return torch.cat([x.relu(), F.max_pool2d(x.relu(), 3, 1, 1)], 1)[:, 4:12]


_BETWEEN = {
    "relu": (nn.ReLU(), set()),
    "relu6": (nn.ReLU6(), set()),
    "leaky relu": (nn.LeakyReLU(0.1), {"QLinearLeakyRelu"}),
    "hardswish": (nn.Hardswish(), {"QLinearLeakyRelu", "QLinearMul"}),
    "silu": (nn.SiLU(), {"QLinearSigmoid", "QLinearMul"}),
    "average": (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), {"QLinearAveragePool"}),
    "concat": (Concat(), {"MaxPool"}),
}


@pytest.mark.parametrize("name", _BETWEEN)
def test_what_stands_between_convolutions_runs_on_integers(name):
    between, kinds = _BETWEEN[name]
    torch.manual_seed(0)
    x = torch.randn(4, 8, 10, 10)
    program = quantized(captured(Through(between), x), x)
    code = compile_for(program, x)
    ran = {
        (kernel.name.split()[0].removeprefix("Nhwc"), kernel.precision) for kernel in code.kernels()
    }
    assert ran >= {(kind, "int8") for kind in kinds}
    assert ("QLinearConv", "int8") in ran
    assert not {kind for kind, precision in ran if precision == "f32"} - {
        "Mul",
        "Conv",
        "ReduceMax",
    }
    assert relative(code(x)[0], program(x)[0]) < 0.02


def test_scales_per_channel_before_a_depthwise_convolution():
    torch.manual_seed(0)
    x = torch.randn(4, 8, 10, 10) * torch.logspace(-2, 1, 8).reshape(8, 1, 1)
    for between in (nn.ReLU(), nn.Tanh()):
        depthwise = nn.Conv2d(8, 16, 3, groups=8)
        model = Through(between, nn.Sequential(depthwise, nn.ReLU(), nn.Conv2d(16, 8, 1)))
        program = quantized(captured(model, x), x, depthwise="channel")
        assert any("FakeQuantizePerChannel" in type(m).__name__ for m in program.module.modules())
        code = compile_for(program, x)
        assert code.precisions()["int8"] >= 2
        assert relative(code(x)[0], program(x)[0]) < 0.02


@pytest.mark.parametrize("shape", [(3, 16), (2, 3, 5, 16)])
def test_linear_layers_of_any_rank_run_as_one_product(shape):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8, bias=False))
    x = torch.randn(shape)
    program = quantized(captured(model, x), x)
    code = compile_for(program, x)
    assert [k.name.split()[0] for k in code.kernels()] == ["QGemm", "Gelu", "QGemm"]
    assert relative(code(x)[0], program(x)[0]) < 0.01


def test_a_transposed_convolution_stays_float_for_want_of_an_integer_kernel():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 6)
    program = quantized(captured(nn.ConvTranspose2d(4, 8, 2, stride=2), x), x)
    code = compile_for(program, x)
    assert code.precisions() == {"f32": 1}
    assert relative(code(x)[0], program(x)[0]) < 1e-5


def test_a_bias_far_larger_than_the_weights_fits_into_32_bits():
    torch.manual_seed(0)
    model = nn.Linear(8, 4)
    with torch.no_grad():
        model.weight[1] *= 1e-9
        model.bias[1] = 5.0
    x = torch.randn(3, 8)
    program = quantized(captured(model, x), x)
    code = compile_for(program, x)
    assert code.precisions() == {"int8": 1}
    torch.testing.assert_close(code(x), program(x), rtol=1e-4, atol=1e-4)


@given(
    function=st.sampled_from([torch.nn.functional.hardswish, torch.sigmoid, F.silu, torch.tanh]),
    scale=st.floats(1e-3, 0.3),
    zero_point=st.sampled_from([0, 20, 128]),
)
def test_the_rounding_before_an_activation_costs_little(function, scale, zero_point):
    def activation(x):
        return function(torch.from_numpy(x)).numpy()

    after = Grid(scale, zero_point)
    before = grid_before(activation, after)
    x = np.linspace(-40, 40, 9999)
    if before is not None:
        error = np.abs(_round(activation(_round(x, before)), after) - _round(activation(x), after))
        # Half of two steps by the first rounding, half a step each where the range was cut off
        # and by the second one, all of it rounded to whole steps.
        assert error.max() < 2.5 * scale


def _round(x, grid):
    integers = np.clip(np.round(x / grid.scale) + grid.zero_point, 0, 255)
    return (integers - grid.zero_point) * grid.scale


def test_the_precision_is_read_from_the_profile():
    def event(name, kind, *dtypes, parameters=0):
        operands = [{dtype: [1]} for dtype in dtypes]
        details = {"op_name": kind, "input_type_shape": operands}
        details["parameter_size"] = str(parameters)
        return {"cat": "Node", "name": f"{name}_kernel_time", "args": details}

    profile = [
        {"cat": "Session", "name": "model_run", "args": {}},
        event("a", "QLinearConv", "uint8", "float"),
        event("b", "Conv", "float", "float"),
        event("c", "Transpose", "uint8"),
        event("b", "Conv", "float", "float"),
        event("d", "QGemm", "uint8", "float"),
        event("e.convolution", "QGemm", "uint8", "float"),
        event("f", "MatMul", "float", "float"),
        event("g", "MatMul", "float"),  # weights packed beforehand
        event("h", "MatMul", "float", "float", parameters=64),
    ]
    assert [(k.name, k.kind, k.precision) for k in find_kernels(profile)] == [
        ("QLinearConv a", "Convolution", "int8"),
        ("Conv b", "Convolution", "f32"),
        ("QGemm d", "MatMul", "int8"),
        ("QGemm e.convolution", "Convolution", "int8"),
        ("MatMul f", "BatchMatMul", "f32"),
        ("MatMul g", "MatMul", "f32"),
        ("MatMul h", "MatMul", "f32"),
    ]


def test_nothing_is_printed(capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compile_for(small_cnn(), image())(image())
    assert capfd.readouterr() == ("", "")
    assert not [w for w in caught if "onnx" in f"{w.filename} {w.message}".lower()]


def test_what_it_cannot_take_it_says():
    for dtype in (torch.float64, torch.bfloat16, torch.complex64):
        b = Builder()
        program = b.program(b.call(aten.neg.default, b.input("x", 2, 3, dtype=dtype)))
        name = str(dtype).removeprefix("torch.")
        assert name in ONNXRuntime().unsupported(program, CPU)
    b = Builder()
    noise = b.program(b.call(aten.rand_like.default, b.input("x", 2, 3)))
    assert "random" in ONNXRuntime().unsupported(noise, CPU)
    b = Builder()
    constant = b.program(b.attribute("fixed", torch.ones(2)))
    assert "no inputs" in ONNXRuntime().unsupported(constant, CPU)
    assert "cuda" in ONNXRuntime().unsupported(small_cnn(), replace(CPU, name="cuda"))
    assert ONNXRuntime().unsupported(small_cnn(), CPU) is None


def test_an_operation_without_translation_is_a_backend_error(capfd):
    b = Builder()
    program = b.program(b.call(aten.special_bessel_j0.default, b.input("x", 2, 3)))
    with pytest.raises(BackendError, match="bessel_j0") as caught:
        compile_for(program, torch.rand(2, 3))
    assert len(str(caught.value)) < 700
    assert capfd.readouterr() == ("", "")


def test_missing_packages_are_named(monkeypatch):
    assert ONNXRuntime().unavailable() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = ONNXRuntime().unavailable()
    assert "onnxruntime and onnx and onnxscript are not installed" in reason
    assert "pip install 'fxopt[onnxruntime]'" in reason


class Projected(nn.Module):
    """A linear layer, and an LSTM that no ONNX operator computes."""

    def __init__(self):
        super().__init__()
        self.layer, self.lstm = nn.Linear(64, 64), nn.LSTM(64, 8, batch_first=True, proj_size=4)

    def forward(self, x):
        return self.lstm(self.layer(x).relu())[0]


def test_what_stands_before_a_layer_without_form_still_runs_there():
    found = partition(captured(Projected(), torch.randn(2, 5, 64)), ONNXRuntime(), CPU)
    assert len(found.parts) == 1
    assert any("projects its states" in line for line in found.outside)


def test_an_average_with_a_divisor_of_its_own_is_refused():
    pools = [nn.AvgPool2d(2, divisor_override=number) for number in (5, None)]
    reasons = [
        ONNXRuntime().unsupported(captured(pool, torch.randn(2, 3, 8, 8)), CPU) for pool in pools
    ]
    assert "divides by a number of its own" in reasons[0]
    assert reasons[1] is None


class LargestAlong(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2).amax(2), x.transpose(1, 2).amin(2)


def test_extremes_of_integers_are_found():
    x = torch.randint(-50, 50, (2, 5, 4))
    program = captured(LargestAlong(), x)
    torch.testing.assert_close(compile_for(program, x)(x), program(x))
