"""Recurrent layers in dynamic int8: beside integers by NumPy, and every backend."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt.backends.fallback import find_fallbacks
from fxopt.cost import find_target
from fxopt.errors import PassError
from fxopt.frontend import capture_program
from fxopt.ir.saving import load_program, save_program
from fxopt.passes import Context
from fxopt.pipeline import PassManager, plan
from fxopt.registry import default_registry
from fxopt_eager import Eager
from fxopt_inductor import Inductor
from fxopt_onnxruntime import ONNXRuntime
from fxopt_openvino import OpenVINO
from fxopt_quantize import DynamicRecurrent, QuantizeDynamic
from fxopt_quantize.dynamic.modules import rounded_whole
from tests.plugins.quantize.support import Tagger, relative

CPU = find_target("cpu")
LAYERS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": partial(nn.RNN, nonlinearity="relu"),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def tagger():
    return tagger_of("lstm")


def tagger_of(kind, levels=2, both=True):
    layer = LAYERS[kind](24, 16, levels, bidirectional=both, batch_first=True)
    return Tagger(layer, 32 if both else 16).eval()


@pytest.fixture
def x():
    return torch.randn(2, 5, 24)


def dynamic(model, *inputs, **fields):
    program = capture_program(model.eval(), inputs, {}).clone()
    result = QuantizeDynamic(**fields).run(program, Context(CPU))
    program.verify()
    return program, result


@given(st.integers(1, 40), st.integers(-30, 30), st.booleans(), st.integers(0, 1000))
def test_values_become_256_levels_with_zero_among_them(size, power, positive, seed):
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=made, dtype=torch.float64) * 10.0**power
    x = x.abs() if positive else x
    low, high = min(float(x.min()), 0), max(float(x.max()), 0)
    scale = (high - low) / 255
    grid = (np.arange(256) - np.rint(-low / scale)) * scale
    mine = rounded_whole(x).numpy()
    assert np.abs(mine[:, None] - grid).min(1).max() <= 1e-9 * scale
    assert np.abs(mine - x.numpy()).max() <= scale * (1 + 1e-9)  # a half, and zero may be off
    assert not rounded_whole(x * 0).any()
    assert rounded_whole(x[:0]).shape == (0,)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(sorted(LAYERS)),
    sizes=st.tuples(*(st.integers(1, 6) for _ in range(4))),
    levels=st.integers(1, 3),
    flags=st.tuples(*(st.booleans() for _ in range(5))),
    seed=st.integers(0, 1000),
)
def test_it_is_arithmetic_on_integers(kind, sizes, levels, flags, seed):
    torch.manual_seed(seed)
    steps, batch, width, hidden = sizes
    bias, batch_first, both, begun, batched = flags
    batch = batch if batched else 1
    layer = LAYERS[kind](
        width, hidden, levels, bias=bias, batch_first=batch_first, bidirectional=both
    ).double()
    x = torch.randn(steps, batch, width).double()
    states = torch.randn(1 + (kind == "lstm"), levels * (1 + both), batch, hidden).double() * begun
    outputs, ends = simulated(layer, x.numpy(), states.numpy())
    if not batched:
        x, states, outputs, ends = x[:, 0], states[:, :, 0], outputs[:, 0], ends[:, :, 0]
    elif batch_first:
        x, outputs = x.transpose(0, 1), outputs.swapaxes(0, 1)
    inputs = (x, *states) if begun else (x,)
    program, result = dynamic(Begun(layer), *inputs)
    assert (result.details["layers"], result.details["float_layers"]) == (1, 0)
    mine = [tensor.detach().numpy() for tensor in program(*inputs)]
    for tensor, expected in zip(mine, (outputs, *ends), strict=True):
        np.testing.assert_allclose(tensor, expected, rtol=1e-9, atol=1e-10)


class Begun(nn.Module):
    """A recurrent layer that may be given the states to begin with, each by itself."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, *states):
        pair = isinstance(self.layer, nn.LSTM)
        outputs, ends = self.layer(x, (states if pair else states[0]) if states else None)
        return outputs, *(ends if pair else (ends,))


def simulated(layer, x, states):
    """All outputs and the last states, steps first, by definition and products of integers."""
    weights = {name: tensor.detach().numpy() for name, tensor in layer.named_parameters()}
    ends = []
    for level in range(layer.num_layers):
        sides = []
        for suffix in ("", "_reverse")[: 2 if layer.bidirectional else 1]:
            part = {k: weights.get(f"{k}_l{level}{suffix}", 0) for k in KINDS}
            order = slice(None, None, -1 if suffix else 1)
            outputs, end = one_direction(CELLS[layer.mode], part, x[order], states[:, len(ends)])
            sides.append(outputs[order])
            ends.append(end)
        x = np.concatenate(sides, -1)
    return x, np.stack(ends, 1)


KINDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def one_direction(cell, part, x, states):
    given, outputs = integer_product(x, part["weight_ih"]) + part["bias_ih"], []
    for step in given:
        recurrent = integer_product(states[0], part["weight_hh"]) + part["bias_hh"]
        states = cell(step, recurrent, *states)
        outputs.append(states[0])
    return np.stack(outputs), np.stack(states)


def lstm_cell(given, recurrent, hidden, cell):
    enter, forget, new, leave = np.split(given + recurrent, 4, axis=-1)
    cell = sigmoid(forget) * cell + sigmoid(enter) * np.tanh(new)
    return sigmoid(leave) * np.tanh(cell), cell


def gru_cell(given, recurrent, hidden):
    """nn.GRU's: r, z, n = ..., tanh(W_in x + b_in + r * (W_hn h + b_hn))."""
    x_r, x_z, x_n = np.split(given, 3, axis=-1)
    h_r, h_z, h_n = np.split(recurrent, 3, axis=-1)
    z = sigmoid(x_z + h_z)
    return ((1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * h_n) + z * hidden,)


CELLS = {
    "LSTM": lstm_cell,
    "GRU": gru_cell,
    "RNN_TANH": lambda given, recurrent, hidden: (np.tanh(given + recurrent),),
    "RNN_RELU": lambda given, recurrent, hidden: (np.maximum(given + recurrent, 0),),
}


def integer_product(x, weight):
    rows = np.abs(weight).max(1) / 127
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = (high - low) / 255 or 1.0
    zero = np.rint(-low / scale)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64) - int(zero)
    return codes @ np.rint(weight / rows[:, None]).astype(np.int64).T * scale * rows


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_onnxruntime_computes_it_in_int8(tagger, x):
    backend = ONNXRuntime()
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    program, _ = dynamic(tagger, x, skip=("head",))
    lowering = backend.lower(program, (x,), CPU)
    code = lowering.compile((x,))
    assert [k.precision for k in code.kernels() if k.kind == "RNNSeq"] == ["int8"] * 4
    assert find_fallbacks(program, code.kernels()) == ()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 5, 24)
        code = lowering.compile((x,))
        with torch.no_grad():
            drift = relative(program(x)[0], tagger(x))
            assert 1e-3 < drift < 0.02
            assert relative(code(x)[0], program(x)[0]) < 0.6 * drift  # it rounds as the program


def test_a_float_layer_beside_it_stays_float(x):
    if (reason := ONNXRuntime().unavailable()) is not None:
        pytest.skip(reason)
    program, _ = dynamic(nn.Sequential(Both()), x, skip=("*right",))
    code = ONNXRuntime().lower(program, (x,), CPU).compile((x,))
    kernels = [k.precision for k in code.kernels() if k.kind == "RNNSeq"]
    assert sorted(kernels) == ["f32", "int8"]


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = (nn.LSTM(24, 8, batch_first=True) for _ in range(2))

    def forward(self, x):
        return self.left(x)[0] + self.right(x)[0]


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        (Eager(), "lstm"),
        (OpenVINO(), "lstm"),
        (Inductor(), "lstm"),
        (OpenVINO(), "gru"),
        (Inductor(), "gru"),
        (ONNXRuntime(), "gru"),
        (ONNXRuntime(), "tanh"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__.lower(),
)
def test_others_compute_in_float_and_say_so(kind, x, backend):
    if isinstance(backend, Inductor):  # each step of each level takes it seconds
        tagger, x = tagger_of(kind, levels=1, both=False), x[:, :2]
    else:
        tagger = tagger_of(kind)
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    program, _ = dynamic(tagger, x, skip=("head",))
    code = backend.lower(program, (x,), CPU).compile((x,))
    with torch.no_grad():
        drift = relative(program(x)[0], tagger(x))
        assert relative(code(x)[0], tagger(x)) < 1.01 * drift  # eager is the program itself
    if code.kernels():
        (line,) = find_fallbacks(program, code.kernels())
        assert "2 of 2 recurrent layers do not run in int8" in line


def test_a_layer_called_twice_is_one(tagger, x):
    program, result = dynamic(tagger, x)
    first, second = (program.leaf(node) for node in program.find(DynamicRecurrent))
    assert first is second
    assert result.summary == "3 layers int8, rounded on each call"


def test_tied_weights_stay_tied(x):
    model = Both()
    model.right.weight_hh_l0 = model.left.weight_hh_l0
    program, _ = dynamic(model, x)
    left, right = (program.leaf(node) for node in program.find(DynamicRecurrent))
    assert left is not right
    assert left.weight_hh_l0_packed is right.weight_hh_l0_packed


def test_the_number_of_steps_may_change(x):
    model = nn.Sequential(nn.LSTM(24, 8)).eval()
    program, _ = dynamic(model, x)
    for steps in (1, 3, 9):
        other = torch.randn(steps, 5, 24)
        with torch.no_grad():
            assert relative(program(other)[0], model(other)[0]) < 0.02


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_weights_take_fewer_bytes_and_are_saved_so(kind, x, tmp_path):
    tagger = tagger_of(kind)
    program, _ = dynamic(tagger, x)
    plain = capture_program(tagger, (x,), {})
    assert program.weight_bytes() < 0.45 * plain.weight_bytes()  # of which many are scales here
    save_program(program, tmp_path / "program")
    loaded = load_program(tmp_path / "program", packages={"fxopt_quantize"})
    assert torch.equal(loaded(x)[0], program(x)[0])


def test_a_drift_is_kept_by_leaving_layers_in_float(tagger, x):
    with torch.no_grad():  # outliers, which leave the others but few levels
        tagger.head.weight *= 0.01
        tagger.head.weight[:, 0] += 3
    program = capture_program(tagger, (x,), {})
    facts = default_registry().facts

    def managed(**limits):
        order = plan([QuantizeDynamic()], facts, set(facts))
        return PassManager(order, facts, Context(CPU, [[x]]), **limits).run(program).records[0]

    free = managed()
    record = managed(max_drift=0.9 * free.drift)
    assert record.status == "applied"
    assert record.drift <= 0.9 * free.drift
    assert len(record.refused) == 1
    assert set(record.details["costs"]) == {"layer", "head"}


def test_what_stays_in_float_is_told(x):
    model = Tagger(nn.LSTM(24, 16, proj_size=8), 8)
    _, result = dynamic(model, x)
    assert "projections" in result.refused[0]
    with pytest.raises(PassError, match=r"'layre'.*no such layer"):
        dynamic(model, x, skip=("layre",))
