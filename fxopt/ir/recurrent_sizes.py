"""What sizes a recurrent layer yields, found out in one step for each layer.

`torch.export` walks LSTM, GRU and RNN layers step by step to learn that: 300 steps of two layers in
both directions take half a minute, for nodes that it records whole. In torch 2.11 it also gives the
states of an LSTM a dimension too many.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._decomp import decompositions

_THEIRS = {
    name: getattr(decompositions, name)
    for name in ("one_layer_rnn", "select_one_layer_lstm_function")
    if hasattr(decompositions, name)
}


class _Exporting(threading.local):
    """How many exports the present thread is in."""

    depth = 0


_here = _Exporting()
_everywhere = 0
_change = threading.Lock()


@contextmanager
def recurrent_layers_not_walked() -> Iterator[None]:
    """For an export that records recurrent layers whole; other threads go on walking.

    What newer versions of torch may lack is left as it is.
    """
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    """One export more or less; torch is changed as long as there are any."""
    global _everywhere
    with _change:
        _here.depth += change
        _everywhere += change
        for name, theirs in _THEIRS.items():
            setattr(decompositions, name, _OURS[name] if _everywhere else theirs)


def _one_layer(*arguments: Any, **keywords: Any) -> Any:
    chosen = _layer if _here.depth else _THEIRS["one_layer_rnn"]
    return chosen(*arguments, **keywords)


def _select(*arguments: Any) -> Any:
    """What computes a layer of an LSTM."""
    return _layer if _here.depth else _THEIRS["select_one_layer_lstm_function"](*arguments)


_OURS = {"one_layer_rnn": _one_layer, "select_one_layer_lstm_function": _select}


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
