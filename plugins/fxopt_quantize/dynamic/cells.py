"""One step of a recurrent layer: its new states from what its matrices yield.

The equations are those of ``torch.nn.LSTM``, ``GRU`` and ``RNN``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

States = tuple[torch.Tensor, ...]
"""The hidden state first, each of shape (batch, hidden)."""

Cell = Callable[[torch.Tensor, torch.Tensor, States], States]
"""From the products of the input and of the hidden state, biases added, and the states before."""


def _lstm(given: torch.Tensor, recurrent: torch.Tensor, states: States) -> States:
    enter, forget, new, leave = (given + recurrent).chunk(4, -1)
    cell = forget.sigmoid() * states[1] + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def _gru(given: torch.Tensor, recurrent: torch.Tensor, states: States) -> States:
    (reset, keep, new), (reset_too, keep_too, new_too) = given.chunk(3, -1), recurrent.chunk(3, -1)
    # the bias of the hidden state's product is reset, too
    new = (new + (reset + reset_too).sigmoid() * new_too).tanh()
    keep = (keep + keep_too).sigmoid()
    return (keep * states[0] + (1 - keep) * new,)


def _rnn_tanh(given: torch.Tensor, recurrent: torch.Tensor, states: States) -> States:
    return ((given + recurrent).tanh(),)


def _rnn_relu(given: torch.Tensor, recurrent: torch.Tensor, states: States) -> States:
    return ((given + recurrent).relu(),)


CELLS: dict[str, Cell] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _rnn_tanh,
    "RNN_RELU": _rnn_relu,
}
"""By the ``mode`` of a layer."""
