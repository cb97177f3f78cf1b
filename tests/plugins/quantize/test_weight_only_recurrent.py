"""Recurrent layers with weights in few bits: beside torch's own with rounded weights."""

import pytest
import torch
from torch import nn

from fxopt.cost import find_target
from fxopt.errors import BackendError
from fxopt.frontend import capture_program
from fxopt.ir.saving import load_program, save_program
from fxopt.passes import Context
from fxopt_eager import Eager
from fxopt_inductor import Inductor
from fxopt_onnxruntime import ONNXRuntime
from fxopt_openvino import OpenVINO
from fxopt_quantize import QuantizeWeights, WeightOnlyRecurrent
from fxopt_quantize.weight_only.grouped import quantize_groups
from tests.plugins.quantize.support import Tagger, relative

CPU = find_target("cpu")


KINDS = {
    "lstm": (lambda: nn.LSTM(24, 16, 2, bidirectional=True, batch_first=True), 32),
    "lstm, projected": (lambda: nn.LSTM(24, 16, proj_size=8), 8),
    "gru": (lambda: nn.GRU(24, 16, bias=False, bidirectional=True), 32),
    "rnn": (lambda: nn.RNN(24, 16, nonlinearity="relu"), 16),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def few_bits(model, x, **fields):
    program = capture_program(model.eval(), (x,), {}).clone()
    result = QuantizeWeights(**fields).run(program, Context(CPU))
    program.verify()
    return program, result


def made(kind):
    make, width = KINDS[kind]
    return Tagger(make(), width).eval()


def rounded(model, bits, group):
    """The same model with rounded matrices; rows that do not divide are one group each."""
    matrices = [weight for weight in model.layer.parameters() if weight.dim() == 2]
    if divides(model.head, group):
        matrices.append(model.head.weight)
    with torch.no_grad():
        for weight in matrices:
            columns = weight.shape[1]
            size = group if group and columns % group == 0 else columns
            weight.copy_(quantize_groups(weight, bits, size).values())
    return model


def divides(linear, group):
    return not group or linear.in_features % group == 0


@pytest.mark.parametrize(("bits", "group"), [(4, 8), (3, 0), (8, 6)])
@pytest.mark.parametrize("kind", KINDS)
def test_they_compute_with_the_rounded_weights(kind, bits, group):
    model, x = made(kind).double(), torch.randn(2, 5, 24, dtype=torch.float64)
    program, result = few_bits(model, x, bits=bits, group=group)
    assert len({program.leaf(node) for node in program.find(WeightOnlyRecurrent)}) == 1
    left = int(not divides(model.head, group))
    assert result.details == {"layers": 3 - left, "float_layers": left}
    with torch.no_grad():
        expected = rounded(model, bits, group)(x)
    torch.testing.assert_close(program(x)[0], expected, rtol=1e-12, atol=1e-12)


class Taggers(nn.Module):
    """Several at once, which takes hardly longer to lower than one."""

    def __init__(self, kinds):
        super().__init__()
        self.taggers = nn.ModuleList(map(made, kinds))

    def forward(self, x):
        return tuple(tagger(x) for tagger in self.taggers)


@pytest.mark.parametrize(
    "backend",
    [Eager(), OpenVINO(), ONNXRuntime(), Inductor()],
    ids=["eager", "openvino", "onnxruntime", "inductor"],
)
def test_every_backend_computes_them(backend):
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    kinds, x = list(KINDS), torch.randn(2, 2, 24)
    if isinstance(backend, ONNXRuntime):
        kinds.remove("lstm, projected")
    program, _ = few_bits(Taggers(kinds), x, group=8)
    code = backend.lower(program, (x,), CPU).compile((x,))
    with torch.no_grad():
        pairs = zip(code(x), program(x), strict=True)
    assert all(relative(found, expected) < 1e-5 for found, expected in pairs)


def test_onnx_has_no_projections():
    if (reason := ONNXRuntime().unavailable()) is not None:
        pytest.skip(reason)
    x = torch.randn(2, 3, 24)
    program, _ = few_bits(made("lstm, projected"), x, group=8)
    with pytest.raises(BackendError, match="projection"):
        ONNXRuntime().lower(program, (x,), CPU).compile((x,))


def test_on_openvino_each_is_a_sequence():
    if (reason := OpenVINO().unavailable()) is not None:
        pytest.skip(reason)
    x = torch.randn(2, 5, 24)
    program, _ = few_bits(made("lstm"), x, group=8)
    code = OpenVINO().lower(program, (x,), CPU).compile((x,))
    assert (
        sum(kernel.kind == "RNNSeq" for kernel in code.kernels()) == 8
    )  # two calls, levels and directions


def test_odd_rows_and_skipped_layers_stay_in_float():
    layer = nn.LSTM(23, 16)
    _, result = few_bits(Tagger(layer, 16), torch.randn(2, 5, 23))
    assert "rows of 23 weights do not divide into bytes" in result.refused[0]
    _, result = few_bits(made("gru"), torch.randn(2, 5, 24), group=8, skip=("layer",))
    assert result.refused[0] == "layer: named in skip"


def test_saved_and_loaded(tmp_path):
    model, x = made("lstm"), torch.randn(2, 5, 24)
    program, _ = few_bits(model, x, group=8)
    plain = capture_program(model, (x,), {})
    assert program.weight_bytes() < 0.4 * plain.weight_bytes()
    save_program(program, tmp_path / "program")
    loaded = load_program(tmp_path / "program", packages={"fxopt_quantize"})
    assert torch.equal(loaded(x)[0], program(x)[0])
    assert loaded.weight_bytes() == program.weight_bytes()
