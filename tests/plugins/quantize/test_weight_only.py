"""Weights in few bits: codes beside integers by NumPy, layers beside float, and every backend."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt.cost import find_target
from fxopt.errors import CalibrationError, PassError
from fxopt.frontend import capture_program
from fxopt.ir.saving import load_program, save_program
from fxopt.passes import Calibration, Context, format_pass
from fxopt.testing import check_pass
from fxopt.testing.strategies import generated_cases
from fxopt_eager import Eager
from fxopt_inductor import Inductor, OneDNN
from fxopt_onnxruntime import ONNXRuntime
from fxopt_openvino import OpenVINO
from fxopt_quantize import QuantizeWeights, WeightOnlyEmbedding, WeightOnlyLinear
from fxopt_quantize.weight_only.grouped import quantize_groups
from fxopt_quantize.weight_only.packing import pack, unpack, unpack_floats
from tests.plugins.quantize.support import relative
from tests.random_models import on_random_models

CPU = find_target("cpu")


class Language(nn.Module):
    """A table that is also the last layer, and two layers in between."""

    def __init__(self, width=64, words=100):
        super().__init__()
        self.table = nn.Embedding(words, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.table.weight

    def forward(self, index):
        x = self.table(index)
        return self.head(x + self.narrow(torch.relu(self.wide(x))))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def index():
    return torch.randint(0, 100, (2, 5))


def few_bits(model, *inputs, **fields):
    program = capture_program(model.eval(), inputs, {}).clone()
    result = QuantizeWeights(**fields).run(program, Context(CPU))
    program.verify()
    return program, result


groups = st.sampled_from([2, 4, 32])
seeds = st.integers(0, 1000)


@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 3), groups, seeds)
def test_packing_keeps_every_code(bits, rows, count, group, seed):
    made = torch.Generator().manual_seed(seed)
    shape = (rows, count, group)
    codes = torch.randint(0, 1 << bits, shape, generator=made, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.numel() == codes.numel() // (2 if bits <= 4 else 1)
    assert torch.equal(unpack(packed, bits, group), codes)
    assert torch.equal(unpack_floats(packed, torch.float32, bits, group), codes.float())


@given(st.integers(2, 8), groups, st.booleans(), seeds)
def test_each_weight_becomes_the_nearest_level_of_its_group(bits, group, symmetric, seed):
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, 2 * group, generator=made, dtype=torch.float64)
    found = quantize_groups(weight, bits, group, symmetric)
    levels = np.arange(1 << bits)
    scale, zero = found.scale.numpy()[..., 0], found.zero_point.numpy()[..., 0]
    rows = weight.reshape(3, 2, group).numpy()
    for row, part in np.ndindex(3, 2):
        grid = (levels - int(zero[row, part])) * scale[row, part]
        assert 0 in grid
        distance = np.abs(rows[row, part][:, None] - grid).min(1)
        mine = found.values().reshape(3, 2, group).numpy()[row, part]
        np.testing.assert_allclose(np.abs(mine - rows[row, part]), distance, atol=1e-12)


@given(st.sampled_from([2, 3, 4]), st.booleans(), seeds)
def test_the_range_errs_no_more_than_the_whole_one(bits, symmetric, seed):
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 32, generator=made, dtype=torch.float64) ** 3
    error = (quantize_groups(weight, bits, 32, symmetric).values() - weight).square().sum()
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if symmetric:
        step, bottom = weight.abs().amax(1, keepdim=True) / ((1 << bits - 1) - 1), -(1 << bits - 1)
        rounded = (weight / step).round().clamp(bottom, -bottom - 1) * step
    else:
        step = (high.clamp(min=0) - low.clamp(max=0)) / ((1 << bits) - 1)
        zero = (-low.clamp(max=0) / step).round()
        rounded = ((weight / step).round() + zero).clamp(0, (1 << bits) - 1) - zero
        rounded = rounded * step
    assert error <= (rounded - weight).square().sum() + 1e-12


def test_groups_of_zeros_stay_zero():
    found = quantize_groups(torch.zeros(2, 8), 4, 4)
    assert torch.equal(found.values(), torch.zeros(2, 8))
    assert torch.isfinite(found.scale).all()


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_layers_compute_with_the_rounded_weights(index, bits):
    model = Language().double()
    program, result = few_bits(model, index, bits=bits, group=32)
    assert result.details["layers"] == 4
    rounded = Language().double()
    rounded.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer in (rounded.table, rounded.wide, rounded.narrow):  # the head has the table's
            layer.weight.copy_(quantize_groups(layer.weight, bits, 32).values())
        torch.testing.assert_close(program(index)[0], rounded(index), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(program.call(index[:1]), rounded(index[:1]))


def test_what_is_tied_is_stored_once(index):
    program, _ = few_bits(Language(), index, group=32)
    table, head = (
        next(program.leaf(n) for n in program.find(kind) if str(n.target) == name)
        for kind, name in ((WeightOnlyEmbedding, "table"), (WeightOnlyLinear, "head"))
    )
    assert table.packed is head.packed
    assert table.scale is head.scale
    weights = 100 * 64 + 2 * 64 * 128
    biases = 4 * (128 + 64)
    assert program.weight_bytes() == weights // 2 + weights // 32 * 5 + biases


def test_some_layers_stay_in_float(index):
    program, result = few_bits(Language(), index, group=32, skip=("w*", "head"), embeddings=False)
    assert {str(n.target) for n in program.find(nn.Linear)} == {"wide", "head"}
    assert len(list(program.find(nn.Embedding))) == 1
    assert result.details == {"layers": 1, "float_layers": 2}
    assert result.refused == ("wide: named in skip", "head: named in skip")


def test_layers_that_do_not_divide_are_refused_by_name():
    program, result = few_bits(
        nn.Sequential(nn.Linear(48, 32), nn.Linear(32, 8)), torch.ones(1, 48), group=32
    )
    assert [str(n.target) for n in program.find(nn.Linear)] == ["0"]
    assert "rows of 48 weights do not divide into groups of 32" in result.refused[0]


@pytest.mark.parametrize("bits", [5, 8])
def test_rows_of_odd_size_divide_into_bytes(bits):
    layer, x = nn.Linear(7, 4), torch.randn(3, 7)
    program, result = few_bits(layer, x, bits=bits, group=0)
    assert not result.refused
    torch.testing.assert_close(program(x)[0], layer(x), rtol=0.1, atol=0.1)
    _, result = few_bits(layer, x, bits=4, group=0)
    assert "rows of 7 weights do not divide into bytes" in result.refused[0]


@pytest.mark.parametrize("backend", [Eager(), Inductor(), OpenVINO(), ONNXRuntime()])
def test_every_backend_takes_rows_of_odd_size(backend):
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    layer, x = nn.Linear(7, 4), torch.randn(3, 7)
    program, _ = few_bits(layer, x, bits=8, group=0)
    code = backend.lower(program, (x,), CPU).compile((x,))
    torch.testing.assert_close(code(x)[0], program(x)[0], rtol=1e-2, atol=1e-2)


def test_weights_that_are_not_finite_stay_as_they_are():
    model = nn.Sequential(nn.Linear(32, 8))
    model[0].weight.data[0, 0] = float("nan")
    program, result = few_bits(model, torch.ones(1, 32), group=32)
    assert not list(program.find(WeightOnlyLinear))
    assert "not finite" in result.refused[0]


def test_a_misspelt_name_is_told(index):
    with pytest.raises(PassError, match=r"'haed'.*no such layer"):
        few_bits(Language(), index, skip=("haed",))


@pytest.mark.parametrize("fields", [{"bits": 1}, {"bits": 9}, {"group": -2}, {"group": 5}])
def test_settings_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        QuantizeWeights(**fields)


BACKENDS = [
    # backend, how far rounding in between may take it, what the layers run in
    (Eager(), 1e-6, None),
    (OpenVINO(), 1e-5, "int4"),
    (OpenVINO(precision="bf16"), 0.02, "int4"),
    (OpenVINO(rounded_group=32), 0.03, "int4"),
    (ONNXRuntime(), 1e-5, "f32"),
    (OneDNN(), 0.02, "int4"),
    (Inductor(), 1e-5, "f32"),
    (Inductor(precision="bf16"), 0.02, "int4"),
]


@pytest.mark.parametrize(
    ("backend", "limit", "precision"), BACKENDS, ids=[each[0].label for each in BACKENDS]
)
def test_every_backend_multiplies_with_them(index, backend, limit, precision):
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    program, _ = few_bits(Language(), index, group=32)
    code = backend.lower(program, (index,), CPU).compile((index,))
    with torch.no_grad():
        expected = program(index)[0]
    assert relative(code(index)[0], expected) < limit
    if precision is not None:
        assert code.precisions() == {precision: 3}


@pytest.mark.parametrize(("bits", "limit"), [(4, 1e-5), (8, 1e-5)])
def test_openvino_without_zero_points(index, bits, limit):
    if (reason := OpenVINO().unavailable()) is not None:
        pytest.skip(reason)
    program, _ = few_bits(Language(), index, bits=bits, group=32, symmetric=True)
    code = OpenVINO().lower(program, (index,), CPU).compile((index,))
    with torch.no_grad():
        assert relative(code(index)[0], program(index)[0]) < limit
    assert code.precisions() == {
        "int4" if bits == 4 else "f32": 3
    }  # of bytes, it tells the product


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 40), st.sampled_from([32, 64, 128]), st.booleans(), st.booleans(), seeds)
def test_torchs_product_takes_any_number_of_outputs(outputs, group, bias, symmetric, seed):
    if OneDNN().unavailable() is not None:
        pytest.skip("torch without oneDNN")
    torch.manual_seed(seed)
    x = torch.randn(3, 2, 128)
    program, _ = few_bits(
        nn.Sequential(nn.Linear(128, outputs, bias)), x, group=group, symmetric=symmetric
    )
    code = OneDNN().lower(program, (x,), CPU).compile((x,))
    assert code.precisions() == {"int4": 1}
    with torch.no_grad():
        assert relative(code(x)[0], program(x)[0]) < 0.02


def test_saved_and_loaded(index, tmp_path):
    program, _ = few_bits(Language(), index, group=32)
    save_program(program, tmp_path / "program")
    loaded = load_program(tmp_path / "program", packages={"fxopt_quantize"})
    assert torch.equal(loaded(index)[0], program(index)[0])
    table, head = (next(loaded.find(kind)) for kind in (WeightOnlyEmbedding, WeightOnlyLinear))
    assert loaded.weight_bytes() == program.weight_bytes()
    assert loaded.leaf(table).group == 32
    assert loaded.leaf(head).weight_bits == 4


def test_text_and_settings():
    assert format_pass(QuantizeWeights()) == "quantize_weights"
    assert format_pass(QuantizeWeights(bits=8, group=0)) == "quantize_weights{bits=8,group=0}"


@pytest.mark.parametrize(
    "fields", [{"group": 4}, {"bits": 8, "group": 0}, {"group": 2, "symmetric": True}]
)
def test_it_conforms(fields):
    for check in check_pass(QuantizeWeights(**fields)):
        check()


@on_random_models(12)
@given(generated_cases(), st.sampled_from([2, 4, 8]), st.booleans())
def test_random_models_are_those_with_rounded_weights(case, bits, symmetric):
    program, rounded = case.program.clone(), case.program.clone()
    QuantizeWeights(bits=bits, group=2, symmetric=symmetric).run(program, case.context())
    program.verify()
    held = {str(n.target) for n in program.find(WeightOnlyLinear, WeightOnlyEmbedding)}
    with torch.no_grad():
        for layer in {rounded.leaf(n) for n in rounded.find(nn.Linear) if str(n.target) in held}:
            layer.weight.copy_(quantize_groups(layer.weight, bits, 2, symmetric).values())
    for mine, expected in zip(case.outputs(program), case.outputs(rounded), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


class Correlated(nn.Module):
    """Linear layers whose inputs depend on each other, and a table that is the last layer too."""

    def __init__(self, width=64, words=50):
        super().__init__()
        self.mix, self.first = nn.Linear(8, width), nn.Linear(width, width)
        self.table, self.head = nn.Embedding(words, width), nn.Linear(width, words, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x, index):
        return self.head(self.first(self.mix(x)) + self.table(index))


def correlated(rounding, calibrate=True):
    model = Correlated().eval()
    batches = [(torch.randn(32, 8), torch.randint(0, 50, (32,))) for _ in range(4)]
    program = capture_program(model, batches[0], {}).clone()
    calibration = Calibration(batches, program.signature) if calibrate else None
    item = QuantizeWeights(bits=3, group=8, rounding=rounding)
    result = item.run(program, Context(CPU, calibration=calibration))
    program.verify()
    return model, program, result


def test_gptq_errs_less_in_outputs_and_keeps_the_levels():
    errors, found = {}, {}
    for rounding in ("nearest", "gptq"):
        torch.manual_seed(0)
        model, program, result = correlated(rounding)
        x = torch.randn(200, 8)
        hidden = model.mix(x)
        layer = program.module.get_submodule("first")
        errors[rounding] = relative(layer(hidden), model.first(hidden))
        found[rounding] = layer, program.module.get_submodule("head")
    assert result.summary.endswith("by gptq")
    assert errors["gptq"] < 0.5 * errors["nearest"]
    (nearest, head), (other, tied) = found["nearest"], found["gptq"]
    assert torch.equal(nearest.scale, other.scale)
    assert torch.equal(nearest.zero_point, other.zero_point)
    assert not torch.equal(nearest.packed, other.packed)
    assert torch.equal(head.packed, tied.packed)  # rows of a table are looked up one by one


def test_gptq_needs_calibration_data():
    with pytest.raises(CalibrationError, match="rounding=gptq"):
        correlated("gptq", calibrate=False)
