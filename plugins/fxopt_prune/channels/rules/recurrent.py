"""Recurrent layers: all levels and directions have one size, so they lose the same units."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from fxopt_prune.channels.atoms import Labels, fixed
from fxopt_prune.channels.rules.registry import rule
from fxopt_prune.channels.trace import Call, Dims, UnclearError, Value

_GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


@rule(nn.LSTM, nn.GRU, nn.RNN)
def recurrent(call: Call) -> Value:
    """Units of all gates, levels and directions of one number go together."""
    layer = call.leaf
    if getattr(layer, "proj_size", 0):
        raise UnclearError("states are projected")
    x, units = call.first(), call.trace.weight(layer.weight_hh_l0)[1]
    ways = 2 if layer.bidirectional else 1
    out = np.tile(units, ways)
    for level in range(layer.num_layers):
        come = out if level else x[-1]
        for suffix in ["", "_reverse"][:ways]:
            _weights(call, f"l{level}{suffix}", come, units)
    states = _states(call, units, layer.num_layers * ways)
    return [(*x[:-1], out), *states]


def _weights(call: Call, name: str, come: Labels, units: Labels) -> None:
    """Couples the weights of one level in one direction."""
    gates = np.tile(units, _GATES[type(call.leaf)])
    for kind, columns in (("ih", come), ("hh", units)):
        rows, inputs = call.trace.weight(getattr(call.leaf, f"weight_{kind}_{name}"))
        call.layer(inputs, rows)
        call.couple(rows, gates)
        call.couple(inputs, columns)
        if call.leaf.bias:
            bias = call.trace.weight(getattr(call.leaf, f"bias_{kind}_{name}"))[0]
            call.couple(bias, gates)


def _states(call: Call, units: Labels, count: int) -> list[Any]:
    """Labels of the last states, coupled with those of the first ones where they are given."""
    for state in call.node.all_input_nodes[1:]:
        call.couple(call.dims(state)[-1], units)
    value = call.node.meta["val"][1]
    if isinstance(value, (tuple, list)):
        return [[_state(units, call, count) for _ in value]]
    return [_state(units, call, count)]


def _state(units: Labels, call: Call, count: int) -> Dims:
    x = call.first()
    batch = x[1 if not call.leaf.batch_first else 0]
    return (fixed(count), batch, units) if len(x) == 3 else (fixed(count), units)
