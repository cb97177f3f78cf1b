"""How large the inputs of layers are, channel by channel, on calibration data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_prune.select import Scores

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def takes_channels(leaf: nn.Module) -> bool:
    """Whether a layer's weight has what it takes along dimension 1, without groups."""
    convolves = type(leaf) in _CONVOLUTIONS and getattr(leaf, "groups", 0) == 1
    return convolves or type(leaf) is nn.Linear


def input_energies(program: Program, batches: Iterable[list[Any]]) -> dict[int, Scores]:
    """The mean square of each input channel of linear layers and convolutions.

    Returns:
        Of shape (channels,), by the identity of the layer's weight; convolutions with groups, and
        transposed ones, are left out.
    """
    walk = _Energies(program)
    with torch.no_grad():
        for flat in batches:
            walk.run(*flat)
    return {key: total / walk.counts[key] for key, total in walk.totals.items()}


class _Energies(fx.Interpreter):
    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self.totals: dict[int, Scores] = {}
        self.counts: dict[int, int] = {}

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        leaf: Any = self.fetch_attr(target)
        if takes_channels(leaf):
            x = (args or tuple(kwargs.values()))[0]
            channel = x.dim() - 1 if isinstance(leaf, nn.Linear) else -len(leaf.kernel_size) - 1
            self._add(id(leaf.weight), x.movedim(channel, 0).flatten(1))
        return super().call_module(target, args, kwargs)

    def _add(self, key: int, rows: torch.Tensor) -> None:
        energy = np.asarray(rows.double().square().sum(1).cpu().numpy())
        self.totals[key] = self.totals.get(key, 0.0) + energy
        self.counts[key] = self.counts.get(key, 0) + rows.shape[1]
