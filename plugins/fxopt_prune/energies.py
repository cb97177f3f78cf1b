"""How large the inputs of layers are, channel by channel, on calibration data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_prune.work import Scores

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)

Taken = tuple[int, int]
"""What multiplies the inputs of a layer: the identity of a weight, and a dimension of it."""


def takes_channels(leaf: nn.Module) -> bool:
    """Whether a layer has one weight with what it takes along dimension 1, without groups."""
    return type(leaf) is nn.Linear or _convolves(leaf, _CONVOLUTIONS)


def _convolves(leaf: Any, kinds: tuple[type[nn.Module], ...]) -> bool:
    return type(leaf) in kinds and leaf.groups == 1


def all_taken(program: Program) -> set[Taken]:
    """All that multiplies what some layer takes."""
    calls = [node for node in program.nodes if node.op == "call_module"]
    return {key for node in calls for key in _taken(program.leaf(node))}


def _taken(leaf: Any) -> list[Taken]:
    """All that multiplies what a layer takes; nothing for layers that are not understood."""
    if takes_channels(leaf):
        return [(id(leaf.weight), 1)]
    if _convolves(leaf, _TRANSPOSED):
        return [(id(leaf.weight), 0)]
    if type(leaf) in _RECURRENT:
        firsts = [leaf.weight_ih_l0, *([leaf.weight_ih_l0_reverse] if leaf.bidirectional else [])]
        return [(id(weight), 1) for weight in firsts]
    return []


def _channels(leaf: Any, x: torch.Tensor) -> torch.Tensor:
    """Of what a layer takes, as (channels, positions)."""
    channel = -len(leaf.kernel_size) - 1 if hasattr(leaf, "kernel_size") else -1
    return x.movedim(channel, 0).reshape(x.shape[channel], -1)


def input_energies(program: Program, batches: Iterable[list[Any]]) -> dict[Taken, Scores]:
    """The mean square of each input channel of linear, convolutional and recurrent layers.

    Returns:
        Of shape (channels,), by what multiplies the inputs; convolutions with groups, and
        recurrent layers behind the first of a stack, are left out.
    """
    walk = _Energies(program)
    with torch.no_grad():
        for flat in batches:
            walk.run(*flat)
    return {key: total / walk.counts[key] for key, total in walk.totals.items()}


class _Energies(fx.Interpreter):
    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self.totals: dict[Taken, Scores] = {}
        self.counts: dict[Taken, int] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        leaf: Any = self.fetch_attr(target)
        for key in _taken(leaf):
            self._add(key, _channels(leaf, (args or tuple(kwargs.values()))[0]))
        return super().call_module(target, args, kwargs)

    def _add(self, key: Taken, rows: torch.Tensor) -> None:
        energy = np.asarray(rows.double().square().sum(1).cpu().numpy())
        self.totals[key] = self.totals.get(key, 0.0) + energy
        self.counts[key] = self.counts.get(key, 0) + rows.shape[1]
