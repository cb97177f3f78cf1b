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
from fxopt.pipeline.partition import partition
from fxopt_openvino import OpenVINO
from fxopt_openvino.indices import with_indices_from_the_start
from fxopt_openvino.kernels import HEAVY
from fxopt_openvino.repeated import with_distinct_outputs
from fxopt_quantize import Quantize
from tests.building import Builder, aten, image, small_cnn
from tests.plugins.attention import Masked, queries_without_keys

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


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize("kind", ["boolean", "float"])
def test_queries_that_may_see_nothing_yield_zeros(kind, rank):
    x, mask = queries_without_keys(kind, rank)
    program = capture_program(Masked(), (x, torch.zeros_like(mask)), {})
    code = compile_for(program, x, mask)
    assert not program(x, mask)[0][0, :, 1].any()
    torch.testing.assert_close(code(x, mask), program(x, mask), rtol=1e-4, atol=1e-5)


class GroupedQuery(nn.Module):
    """Attention of 8 heads of queries over fewer heads of keys."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.query, self.shared = nn.Linear(32, 32), nn.Linear(32, 2 * 4 * heads)

    def forward(self, x):
        q = self.query(x).unflatten(-1, (8, 4)).transpose(1, 2)
        k, v = self.shared(x).unflatten(-1, (2 * self.heads, 4)).transpose(1, 2).chunk(2, 1)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_heads_that_share_keys(heads):
    x = torch.randn(2, 5, 32)
    program = capture_program(GroupedQuery(heads).eval(), (x,), {})
    code = compile_for(program, x)
    torch.testing.assert_close(code(x), program(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("closed", [False, True])
def test_constant_masks_that_leave_each_query_a_key_cost_nothing(closed):
    x, mask = torch.randn(2, 3, 5, 4), torch.ones(5, 5, dtype=torch.bool).tril()
    mask[2] = mask[2] & (not closed)
    program = capture_program(Masked(mask), (x,), {})
    code = compile_for(program, x)
    torch.testing.assert_close(code(x), program(x), rtol=1e-4, atol=1e-5)
    names = " ".join(
        node.get_rt_info()["originalLayersNames"].astype(str)
        for node in code._compiled.get_runtime_model().get_ordered_ops()
    )
    assert closed or "unattended" not in names


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


_INTEGERS = {
    "floor": (lambda x: x // 3, torch.int64, "divides integers"),
    "rest": (lambda x: x % 1000, torch.int32, "divides integers"),
    "bytes": (lambda x: x + 200, torch.uint8, "computes in uint8"),
    "hash": (lambda x: x * 2654435761, torch.int64, "beyond 32 bits"),
}


@pytest.mark.parametrize("name", _INTEGERS)
def test_integers_that_it_computes_in_another_way_are_refused(name):
    function, dtype, why = _INTEGERS[name]
    program = capture_program(Function(function), (torch.ones(2, 3, dtype=dtype),), {})
    assert why in OpenVINO().unsupported(program, CPU)


def test_other_integers_are_taken():
    ids = torch.randint(0, 9, (2, 3))
    program = capture_program(Function(lambda x: (x * 3 - 7, x[:, 1:], x / 2)), (ids,), {})
    assert OpenVINO().unsupported(program, CPU) is None
    torch.testing.assert_close(compile_for(program, ids)(ids), program(ids))


def test_what_stands_before_a_floor_division_still_runs_there():
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Flatten(), Function(lambda x: x.argmax(1) // 7 - 5)
    )
    program = capture_program(model.eval(), (torch.randn(2, 3, 32, 32),), {})
    found = partition(program, OpenVINO(), CPU)
    assert len(found.parts) == 1
    assert any("divides integers" in line for line in found.outside)


def test_sizes_that_depend_on_the_data_are_refused():
    program = capture_program(Function(lambda x: x.relu().nonzero()), (torch.randn(2, 3),), {})
    assert "depends on the data" in OpenVINO().unsupported(program, CPU)


@pytest.mark.parametrize("width", [3, 300])
def test_a_result_may_be_several_outputs(width):
    def function(x):
        y = x * 2
        return y, y.relu(), y, x, x, y

    program = capture_program(Function(function), (torch.randn(2, width, width),), {})
    for batch in (2, 3):
        x = torch.randn(batch, width, width)
        outputs = compile_for(program, x)(x)
        torch.testing.assert_close(outputs, program(x))
        assert len({output.data_ptr() for output in outputs}) == len(outputs)


class RoundedRows(nn.Module):
    """Rows on a grid of a few levels, whoever takes them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        scale = x.abs().amax(-1, keepdim=True) / 2
        rows = torch.clamp(torch.round(x / scale), -2, 2) * scale
        return self.layer(rows), rows


def test_rounding_that_is_the_models_own_stays():
    x = torch.randn(5, 3)
    program = capture_program(RoundedRows().eval(), (x,), {})
    torch.testing.assert_close(compile_for(program, x)(x), program(x), rtol=1e-4, atol=1e-5)


_CHOICES = {
    "one of each sample": lambda x, i: x[torch.arange(len(x)), i],
    "twice": lambda x, i: x[i, i],
    "later ones": lambda x, i: x[:, i, i],
    "apart": lambda x, i: x[i, :, i],
}


@pytest.mark.parametrize("name", _CHOICES)
def test_indices_may_count_from_the_end(name):
    x, first = torch.randn(3, 5, 5), torch.tensor([0, 1, 2])
    program = capture_program(Function(_CHOICES[name]), (x, first), {})
    code = compile_for(program, x, first)
    for index in (first, torch.tensor([-1, 2, -3])):
        torch.testing.assert_close(code(x, index), program(x, index))


@pytest.mark.parametrize(
    ("pool", "why"),
    [
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), "counts padding"),
        (nn.AvgPool1d(3, 2, 1, ceil_mode=True), "counts padding"),
        (nn.AvgPool2d(3, 2, 1, divisor_override=5), "divides by a number"),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), None),
        (nn.AvgPool2d(3, 2, ceil_mode=True), None),
    ],
)
def test_averages_that_it_takes_in_another_way_are_refused(pool, why):
    x = torch.randn(2, 3, 8, 8) if isinstance(pool, nn.AvgPool2d) else torch.randn(2, 3, 8)
    program = capture_program(pool, (x,), {})
    reason = OpenVINO().unsupported(program, CPU)
    assert why in reason if why else reason is None
    if reason is None:
        torch.testing.assert_close(compile_for(program, x)(x), program(x), rtol=1e-4, atol=1e-5)


class RewrittenForIt(nn.Module):
    """Chooses by several tensors, and yields one result twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x, index):
        chosen = self.layer(x)[index, index]
        return chosen, chosen


def test_what_is_rewritten_for_it_shares_its_weights():
    inputs = torch.randn(3, 5), torch.tensor([0, 1, 2])
    program = capture_program(RewrittenForIt(), inputs, {})
    rewritten = with_distinct_outputs(with_indices_from_the_start(program))
    assert rewritten is not program
    weights = dict(rewritten.module.named_parameters())
    assert all(weights[name] is each for name, each in program.module.named_parameters())
