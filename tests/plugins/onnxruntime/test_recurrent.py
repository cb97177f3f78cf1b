"""Recurrent layers on ONNX Runtime: nothing is computed around them that need not be."""

import pytest
import torch
from torch import nn
from torch._decomp import decompositions

from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt.plugin import export_program
from fxopt_onnxruntime import ONNXRuntime

ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

CPU = find_target("cpu")
_ABOUT_SIZES = {"Shape", "Expand", "Slice", "Concat", "Mul", "ConstantOfShape"}


class First(nn.Module):
    """The outputs of a recurrent layer alone."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Stateful(First):
    """One that begins with a state of its own."""

    def forward(self, x):
        state = 0.5 * x[:, 0, :4].unsqueeze(0)
        return self.layer(x, torch.cat([state, -state]))[0]


def captured(model):
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    return capture_program(model.eval(), (x,), {}), x


def on_batches(program):
    """Each output beside that of the program, at several sizes."""
    lowering = ONNXRuntime().lower(program, (torch.randn(2, 5, 6),), CPU)
    for batch in (1, 2, 7):
        x = torch.randn(batch, 5, 6)
        with torch.no_grad():
            torch.testing.assert_close(
                lowering.compile((x,))(x)[0], program(x)[0], rtol=1e-4, atol=1e-6
            )


def operations(program, x):
    from fxopt_onnxruntime.translate import translate

    model = translate(export_program(program, (x,), dynamic=True))
    constants = set(model.graph.initializers)
    return [
        node
        for node in model.graph
        if not all(value is None or value.name in constants for value in node.inputs)
    ]


@pytest.mark.parametrize("both", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_no_size_is_computed_around_them(kind, both):
    program, x = captured(First(kind(6, 4, 2, batch_first=True, bidirectional=both)))
    on_batches(program)
    found = operations(program, x)
    layers = [node for node in found if node.op_type in {"LSTM", "GRU"}]
    assert len(layers) == 2
    assert all(value is None for layer in layers for value in layer.inputs[5:])
    assert not _ABOUT_SIZES & reached_from(found, "inputs_0")


def reached_from(nodes, name):
    """The kinds of operations that an input goes through."""
    known, kinds = {name}, set()
    for node in nodes:
        if known & {value.name for value in node.inputs if value is not None}:
            kinds.add(node.op_type)
            known |= {value.name for value in node.outputs}
    return kinds


def test_a_state_of_its_own_is_kept():
    program, x = captured(Stateful(nn.GRU(6, 4, 2, batch_first=True)))
    on_batches(program)
    layers = [n for n in operations(program, x) if n.op_type == "GRU"]
    assert all(layer.inputs[5] is not None for layer in layers)


@pytest.mark.parametrize("layer", [nn.LSTM(6, 4, 2, batch_first=True), nn.GRU(6, 4)])
def test_steps_are_not_walked(layer, monkeypatch):
    def walked(*_):
        raise AssertionError("a recurrent layer is walked step by step")

    program, _ = captured(First(layer))
    for cell in ("lstm_cell", "gru_cell"):
        monkeypatch.setattr(decompositions, cell, walked)
    on_batches(program)
