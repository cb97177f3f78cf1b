"""Recurrent layers are captured without being walked, with the sizes that they really yield."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._decomp import decompositions
from torch.utils import _pytree as pytree

from fxopt.frontend import capture_program
from fxopt.ir import recurrent_layers_not_walked

LAYERS = {
    "lstm": nn.LSTM(8, 6, 2, batch_first=True),
    "lstm, both directions, steps first": nn.LSTM(8, 6, 2, bidirectional=True),
    "lstm, projected": nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True, proj_size=4),
    "lstm, no biases": nn.LSTM(8, 6, batch_first=True, bias=False),
    "gru": nn.GRU(8, 6, 3, batch_first=True, bidirectional=True),
    "rnn": nn.RNN(8, 6, 2, batch_first=True),
    "rnn, relu": nn.RNN(8, 6, batch_first=True, nonlinearity="relu", bidirectional=True),
}


class States(nn.Module):
    """All that a layer yields, and what depends on the sizes of its last state."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y, states = self.layer(x)
        hidden = states[0] if isinstance(states, tuple) else states
        return y, states, hidden.transpose(0, 1).flatten(1)


def walked(*_):
    raise AssertionError("a recurrent layer is walked step by step")


@pytest.mark.parametrize("name", LAYERS)
def test_sizes_are_those_of_the_results(name, monkeypatch):
    for cell in ("lstm_cell", "gru_cell"):
        monkeypatch.setattr(decompositions, cell, walked)
    monkeypatch.setattr(decompositions, "rnn_cell", lambda function: walked)
    model, x = States(LAYERS[name]).double().eval(), torch.randn(5, 7, 8, dtype=torch.float64)
    program = capture_program(model, (x,), {})
    with torch.no_grad():
        expected = pytree.tree_leaves(model(x))
        outputs = program(x)
    fakes = [node.meta["val"] for node in program.output.args[0]]
    for output, right, fake in zip(outputs, expected, fakes, strict=True):
        torch.testing.assert_close(output, right, rtol=1e-12, atol=1e-12)
        assert fake.dim() == right.dim()
        assert fake.dtype == right.dtype
        sizes = zip(fake.shape, right.shape, strict=True)
        assert all(size == real for size, real in sizes if isinstance(size, int))


def test_torch_is_left_as_it_was():
    names = ("one_layer_rnn", "select_one_layer_lstm_function")
    before = [getattr(decompositions, name) for name in names]
    capture_program(States(nn.GRU(8, 6)).eval(), (torch.randn(5, 7, 8),), {})
    assert [getattr(decompositions, name) for name in names] == before


def test_other_threads_go_on_walking():
    steps, state = torch.ones(5, 2, 3), torch.zeros(2, 3)
    with recurrent_layers_not_walked(), ThreadPoolExecutor(1) as other:

        def sums():
            adding = decompositions.one_layer_rnn
            weights = [torch.eye(3), torch.eye(3)]
            return adding(steps, state, weights, False, hidden_fn=lambda i, h, *_: h + i)

        hidden, last = other.submit(sums).result()
    assert last.eq(5).all()
    assert hidden[:, 0, 0].tolist() == [1, 2, 3, 4, 5]


def test_a_thread_may_leave_while_another_exports():
    before = decompositions.one_layer_rnn
    with ThreadPoolExecutor(1) as other:
        mine = recurrent_layers_not_walked()
        mine.__enter__()
        theirs = other.submit(_entered).result()
        mine.__exit__(None, None, None)
        changed = decompositions.one_layer_rnn
        other.submit(theirs.__exit__, None, None, None).result()
    assert changed is not before
    assert decompositions.one_layer_rnn is before


def _entered():
    context = recurrent_layers_not_walked()
    context.__enter__()
    return context
