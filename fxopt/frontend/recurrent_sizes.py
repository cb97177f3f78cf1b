"""What sizes a recurrent layer yields, found out in one step for each layer.

`torch.export` walks LSTM, GRU and RNN layers step by step to learn that: 300 steps of two layers in
both directions take half a minute, for nodes that it records whole. In torch 2.11 it also gives the
states of an LSTM a dimension too many.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp import decompositions


@contextmanager
def recurrent_layers_not_walked() -> Iterator[None]:
    """For the time of an export; what newer versions of torch may lack is left as it is."""
    ours = {"one_layer_rnn": _layer, "select_one_layer_lstm_function": lambda *_: _layer}
    theirs = {name: getattr(decompositions, name, None) for name in ours}
    found = [name for name in ours if theirs[name] is not None]
    for name in found:
        setattr(decompositions, name, ours[name])
    try:
        yield
    finally:
        for name in found:
            setattr(decompositions, name, theirs[name])


def _layer(
    steps: torch.Tensor, state: Any, *_: Any, hidden_fn: Any = None, reverse: bool = False
) -> tuple[torch.Tensor, Any]:
    """One layer in one direction: a hidden state for each step, and the last state.

    Args:
        steps: Of shape (steps, batch, inputs).
        state: The first state, of shape (batch, hidden); an LSTM's is a pair with its cells.
        hidden_fn: One step, of what is no LSTM.
        reverse: The direction.
    """
    hidden = state if isinstance(state, torch.Tensor) else state[0]
    return hidden.new_empty((steps.shape[0], *hidden.shape)), state
