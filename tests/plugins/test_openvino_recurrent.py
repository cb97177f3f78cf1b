"""Recurrent layers on OpenVINO: one operation a level, with the numbers of torch."""

import pytest
import torch
from torch import nn

from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt_openvino import OpenVINO
from fxopt_openvino.recurrent import RecurrentSequence, with_sequences

CPU = find_target("cpu")
needs_bfloat16 = pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & set(CPU.features), reason="the processor has no bfloat16"
)

pytestmark = pytest.mark.skipif(OpenVINO().unavailable() is not None, reason="no OpenVINO")


class Wrapped(nn.Module):
    """Gives all that a recurrent layer gives, or its outputs alone."""

    def __init__(self, layer, states=True):
        super().__init__()
        self.layer, self.states = layer, states

    def forward(self, x):
        found = self.layer(x)
        return found if self.states else found[0].relu()


class Continued(nn.Module):
    """Two calls of one layer, the second one from where the first one ended."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, y):
        _, state = self.layer(x)
        return self.layer(y, state)


def check(model, *inputs, levels, others=()):
    """Compares numbers and counts operations; ``others`` are inputs of other sizes."""
    program = capture_program(model.eval(), inputs, {})
    lowering = OpenVINO().lower(program, inputs, CPU)
    code = lowering.compile(inputs)
    torch.testing.assert_close(code(*inputs), program(*inputs), rtol=1e-4, atol=1e-5)
    kinds = [kernel.kind for kernel in code.kernels()]
    assert kinds.count("RNNSeq") == levels
    assert "MatMul" not in kinds
    assert "FullyConnected" not in kinds
    for other in others:
        found = lowering.compile(other)(*other)
        torch.testing.assert_close(found, program(*other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("directions", "batch_first", "bias"), [(1, True, True), (2, False, True), (2, True, False)]
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_outputs_and_states_agree(kind, directions, batch_first, bias):
    torch.manual_seed(0)
    layer = kind(
        5, 6, 2, bias=bias, batch_first=batch_first, bidirectional=directions == 2, dropout=0.3
    )
    # where steps come first, their number is what varies
    first, other = torch.randn(2, 7, 5), torch.randn(3, 7, 5)
    check(Wrapped(layer), first, levels=2 * directions, others=[(other,)])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_given_states_and_a_layer_that_is_called_twice(kind):
    torch.manual_seed(0)
    x, y = torch.randn(2, 4, 5), torch.randn(2, 3, 5)
    check(Continued(kind(5, 6, batch_first=True)), x, y, levels=2)


@needs_bfloat16
def test_outputs_alone_in_bfloat16():
    torch.manual_seed(0)
    x = torch.randn(2, 7, 16)
    program = capture_program(Wrapped(nn.LSTM(16, 32), states=False).eval(), (x,), {})
    code = OpenVINO(precision="bf16").lower(program, (x,), CPU).compile((x,))
    assert code.precisions() == {"bf16": 1}
    assert float((code(x)[0] - program(x)[0]).norm() / program(x)[0].norm()) < 0.02


def test_what_has_no_such_operation_is_left_to_the_front_end():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 5)
    for layer in (nn.LSTM(5, 6, proj_size=3), nn.RNN(5, 6)):
        program = capture_program(Wrapped(layer).eval(), (x,), {})
        assert with_sequences(program) is program
        code = OpenVINO().lower(program, (x,), CPU).compile((x,))
        torch.testing.assert_close(code(x), program(x), rtol=1e-4, atol=1e-5)


def test_the_program_is_not_changed():
    x = torch.randn(2, 4, 5)
    program = capture_program(Wrapped(nn.GRU(5, 6)).eval(), (x,), {})
    before = program.fingerprint()
    assert len(list(with_sequences(program).find(RecurrentSequence))) == 1
    assert program.fingerprint() == before
