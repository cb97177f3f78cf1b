"""Recurrent networks and cells."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from fxopt.frontend.raising.context import Context, bind

aten = torch.ops.aten
_LAYERS: dict[Any, tuple[type[nn.Module], dict[str, Any]]] = {
    aten.lstm.input: (nn.LSTM, {}),
    aten.gru.input: (nn.GRU, {}),
    aten.rnn_tanh.input: (nn.RNN, {"nonlinearity": "tanh"}),
    aten.rnn_relu.input: (nn.RNN, {"nonlinearity": "relu"}),
}
_CELLS: dict[Any, tuple[type[nn.Module], dict[str, Any]]] = {
    aten.lstm_cell.default: (nn.LSTMCell, {}),
    aten.gru_cell.default: (nn.GRUCell, {}),
    aten.rnn_tanh_cell.default: (nn.RNNCell, {"nonlinearity": "tanh"}),
    aten.rnn_relu_cell.default: (nn.RNNCell, {"nonlinearity": "relu"}),
}


def raise_recurrent(context: Context, node: Node) -> None:
    """Raises lstm, gru and rnn on one padded tensor."""
    a = bind(node)
    kind, settings = _LAYERS[node.target]
    if not all(context.parameter(p) is not None for p in a["params"]):
        return
    tensors = dict(zip(_parameter_names(a), a["params"], strict=True))
    leaf = context.leaf(
        context.owner_name(node, tensors),
        kind,
        tensors,
        **_sizes(context, node, tensors),
        **settings,
        num_layers=a["num_layers"],
        bias=a["has_biases"],
        batch_first=a["batch_first"],
        dropout=a["dropout"],
        bidirectional=a["bidirectional"],
    )
    is_lstm = kind is nn.LSTM
    state = tuple(a["hx"]) if is_lstm else a["hx"]
    called = context.replace(node, leaf, a["input"], state)
    if is_lstm:
        _nest_state(context, called)


def _sizes(context: Context, node: Node, tensors: dict[str, Any]) -> dict[str, int]:
    first, second = (context.fetched(tensors[f"weight_{k}_l0"]) for k in ("ih", "hh"))
    assert first is not None
    assert second is not None
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[_LAYERS[node.target][0]]
    hidden = first.shape[0] // gates
    sizes = {"input_size": first.shape[1], "hidden_size": hidden}
    # the recurrent weight of an LSTM with a projection is narrower than its hidden state
    return sizes | ({"proj_size": second.shape[1]} if second.shape[1] != hidden else {})


def _parameter_names(a: dict[str, Any]) -> list[str]:
    """The names that torch.nn gives to the parameters, in the order of the call's arguments."""
    directions = ("", "_reverse") if a["bidirectional"] else ("",)
    rows = a["num_layers"] * len(directions)
    kinds = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if a["has_biases"] else [])
    if len(a["params"]) == rows * (len(kinds) + 1):
        kinds.append("weight_hr")
    layers = range(a["num_layers"])
    return [f"{kind}_l{layer}{d}" for layer in layers for d in directions for kind in kinds]


def _nest_state(context: Context, node: Node) -> None:
    """Turns (output, h, c), which the operation returns, into the module's (output, (h, c))."""
    output, hidden, cell = node.meta["val"]
    node.meta["val"] = (output, (hidden, cell))
    for user in list(node.users):
        assert user.target is operator.getitem
        index = user.args[1]
        assert isinstance(index, int)
        if index % 3 > 0:
            with context.graph.inserting_before(user):
                state = context.graph.call_function(operator.getitem, (node, 1))
            state.meta = {**node.meta, "val": (hidden, cell)}
            user.args = (state, index % 3 - 1)


def raise_cell(context: Context, node: Node) -> None:
    """Raises lstm_cell, gru_cell and rnn cells."""
    a = bind(node)
    kind, settings = _CELLS[node.target]
    names = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh"}
    tensors = {field: a[name] for field, name in names.items()}
    weight, recurrent = (context.parameter(tensors[k]) for k in ("weight_ih", "weight_hh"))
    biases = [tensors["bias_ih"], tensors["bias_hh"]]
    learned = all(context.learned(tensors["weight_ih"], bias) for bias in biases)
    if weight is None or recurrent is None or not learned:
        return
    leaf = context.leaf(
        context.owner_name(node, tensors),
        kind,
        tensors,
        input_size=weight.shape[1],
        hidden_size=recurrent.shape[1],
        bias=biases[0] is not None,
        **settings,
    )
    hx = tuple(a["hx"]) if kind is nn.LSTMCell else a["hx"]
    context.replace(node, leaf, a["input"], hx)
