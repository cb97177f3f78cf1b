"""Dynamic int8: rows beside integers by NumPy, layers beside float, and every backend."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt.cost import find_target
from fxopt.errors import PassError
from fxopt.frontend import capture_program
from fxopt.ir.saving import load_program, save_program
from fxopt.passes import Calibration, Context
from fxopt.pipeline import PassManager, plan
from fxopt.registry import default_registry
from fxopt.testing import check_pass
from fxopt.testing.strategies import generated_cases
from fxopt_eager import Eager
from fxopt_inductor import Inductor, OneDNN
from fxopt_onnxruntime import ONNXRuntime
from fxopt_openvino import OpenVINO
from fxopt_quantize import DynamicLinear, QuantizeDynamic
from fxopt_quantize.dynamic.modules import rounded_rows
from tests.plugins.quantize.support import relative
from tests.random_models import on_random_models

CPU = find_target("cpu")


class Feed(nn.Module):
    """A transformer's feed-forward block, and a head with the weights of the first layer."""

    def __init__(self, width=64):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 2 * width, bias=False)
        self.head.weight = self.wide.weight

    def forward(self, x):
        y = self.narrow(nn.functional.gelu(self.wide(self.norm(x))))
        return self.head(x + y)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def tokens():
    """Tokens of very different sizes, and outliers in one channel."""
    x = torch.randn(2, 5, 64) * torch.logspace(-2, 2, 5)[:, None]
    x[..., 3] *= 20
    return x


def dynamic(model, *inputs, **fields):
    program = capture_program(model.eval(), inputs, {}).clone()
    result = QuantizeDynamic(**fields).run(program, Context(CPU))
    program.verify()
    return program, result


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(-30, 30), st.integers(0, 1000))
def test_rows_become_integers_of_their_own_scale(rows, width, power, seed):
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=made, dtype=torch.float64) * 10.0**power
    x[0] = 0
    scale = np.abs(x.numpy()).max(1, keepdims=True) / 127
    scale[scale == 0] = 1
    expected = np.rint(x.numpy() / scale) * scale
    apart = np.abs(rounded_rows(x).numpy() - expected)
    halves = np.abs(x.numpy() / scale % 1 - 0.5) < 1e-9  # may become either neighbour
    assert (apart[~halves] <= 1e-12 * np.abs(expected).max()).all()
    assert not rounded_rows(x)[0].any()


def test_each_token_has_its_own_error(tokens):
    model = Feed()
    program, result = dynamic(model, tokens)
    assert result.summary == "3 layers int8, rounded on each call"
    with torch.no_grad():
        for mine, expected in zip(program(tokens)[0][0], model(tokens)[0], strict=True):
            assert relative(mine, expected) < 0.04  # however small the token
        alone = program(tokens[:1, :1].expand(2, 5, 64))[0][0, 0]
        torch.testing.assert_close(alone, program(tokens)[0][0, 0])


def test_tied_weights_stay_tied_and_take_a_quarter(tokens):
    program, _ = dynamic(Feed(), tokens)
    wide, _narrow, head = (program.leaf(node) for node in program.find(DynamicLinear))
    assert wide.weight_values is head.weight_values
    plain = capture_program(Feed().eval(), (tokens,), {})
    assert program.weight_bytes() < 0.3 * plain.weight_bytes()


BACKENDS = [
    # backend, how far from the program it may be, what the layers run in
    (Eager(), 1e-6, None),
    (OneDNN(), 1e-5, "int8"),
    (Inductor(), 1e-5, "int8"),
    (Inductor(cpp_wrapper=True), 1e-5, "int8"),
    (OpenVINO(), 0.02, "f32"),  # unrounded, which is closer to the original
    (OpenVINO(rounded_group=32), 0.02, "int8"),
    (ONNXRuntime(), 1e-5, "f32"),
]


@pytest.mark.parametrize(
    ("backend", "limit", "precision"), BACKENDS, ids=[each[0].label for each in BACKENDS]
)
def test_every_backend_computes_them(tokens, backend, limit, precision):
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    program, _ = dynamic(Feed(), tokens)
    code = backend.lower(program, (tokens,), CPU).compile((tokens,))
    with torch.no_grad():
        expected = program(tokens)[0]
    assert relative(code(tokens)[0], expected) < limit
    if precision is not None:
        assert code.precisions() == {precision: 3}


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 40), st.integers(1, 70), st.booleans(), st.integers(0, 1000))
def test_torchs_integer_product_is_exact_for_any_size(outputs, inputs, bias, seed):
    if OneDNN().unavailable() is not None:
        pytest.skip("torch without oneDNN")
    torch.manual_seed(seed)
    x = torch.randn(3, 2, inputs)
    program, _ = dynamic(nn.Sequential(nn.Linear(inputs, outputs, bias)), x)
    code = OneDNN().lower(program, (x,), CPU).compile((x,))
    assert code.precisions() == {"int8": 1}
    with torch.no_grad():
        expected = program(x)[0]
    assert float((code(x)[0] - expected).abs().max()) <= 1e-5 * float(expected.abs().max()) + 1e-6


def managed(model, x, calibrate, **limits):
    program = capture_program(model.eval(), (x,), {})
    calibration = Calibration([x], program.signature) if calibrate else None
    context = Context(CPU, [[x]], calibration=calibration)
    facts = default_registry().facts
    manager = PassManager(plan([QuantizeDynamic()], facts, set(facts)), facts, context, **limits)
    return manager.run(program).records[0]


@pytest.mark.parametrize("calibrate", [False, True])
def test_a_drift_is_kept_by_leaving_few_layers_in_float(calibrate):
    model, x = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4))), torch.randn(16, 32)
    with torch.no_grad():  # outliers, which leave the others but few levels
        model[2].weight *= 0.01
        model[2].weight[:, 0] += 30
    free = managed(model, x, calibrate)
    record = managed(model, x, calibrate, max_drift=0.7 * free.drift)
    assert record.status == "applied"
    assert record.drift <= 0.7 * free.drift
    assert 1 <= len(record.refused) <= 3
    assert len(record.details["costs"]) == 4


def test_what_cannot_be_done_is_told(tokens):
    model = Feed()
    model.narrow.weight.data[0, 0] = float("nan")
    program, result = dynamic(model, tokens, skip=("head",))
    assert [str(node.target) for node in program.find(nn.Linear)] == ["narrow", "head"]
    assert "not finite" in result.refused[0]
    assert "named in skip" in result.refused[1]
    with pytest.raises(PassError, match=r"'haed'.*no such layer"):
        dynamic(Feed(), tokens, skip=("haed",))
    convolution = capture_program(nn.Conv2d(2, 2, 1), (torch.randn(1, 2, 3, 3),), {})
    reason = QuantizeDynamic().inapplicable(convolution, Context(CPU))
    assert reason == "there is no linear or recurrent layer in float"


def test_saved_and_loaded(tokens, tmp_path):
    program, _ = dynamic(Feed(), tokens)
    save_program(program, tmp_path / "program")
    loaded = load_program(tmp_path / "program", packages={"fxopt_quantize"})
    assert torch.equal(loaded(tokens)[0], program(tokens)[0])


def test_it_conforms():
    for check in check_pass(QuantizeDynamic()):
        check()


@on_random_models(15)
@given(generated_cases())
def test_random_models_are_those_with_rounded_rows(case):
    program, float_one = case.program.clone(), case.program.clone()
    QuantizeDynamic().run(program, case.context())
    program.verify()
    assert not list(program.find(nn.Linear))
    layers = {str(n.target): program.leaf(n) for n in program.find(DynamicLinear)}
    with torch.no_grad():
        for node in float_one.find(nn.Linear):
            layer, rounding = float_one.leaf(node), layers[str(node.target)]
            layer.weight.copy_(rounding.weight_values * rounding.weight_scale)
            layer.register_forward_pre_hook(lambda _, inputs: (rounded_rows(inputs[0]),))
    for mine, expected in zip(case.outputs(program), case.outputs(float_one), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)
