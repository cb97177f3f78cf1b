"""What layers take and yield on calibration data: means and covariances of channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Program

_ROWS = 1 << 14  # positions of a batch that are enough: neighbours in an image are alike


@dataclass(frozen=True)
class Moments:
    """Of the channels of a value.

    Attributes:
        mean: Of shape (channels,), in float64.
        covariance: Of shape (channels, channels), in float64.
    """

    mean: torch.Tensor
    covariance: torch.Tensor


@dataclass(frozen=True)
class Statistics:
    """Of a layer.

    Attributes:
        inputs: Of what it takes.
        outputs: Of what it yields.
    """

    inputs: Moments
    outputs: Moments


def gather(
    program: Program, layers: Iterable[fx.Node], batches: Iterable[list[Any]]
) -> dict[fx.Node, Statistics]:
    """Runs a program on calibration data.

    Args:
        program: Is not changed.
        layers: Calls of linear layers and convolutions.
        batches: Flat inputs.
    """
    walk = _Walk(program, set(layers))
    with torch.no_grad():
        for flat in batches:
            walk.run(*flat)
    return {node: Statistics(x.moments(), y.moments()) for node, (x, y) in walk.sums.items()}


class _Sums:
    def __init__(self) -> None:
        self._count, self._sum, self._products = 0, 0.0, 0.0  # type: int, Any, Any

    def add(self, rows: torch.Tensor) -> None:
        rows = rows[:: max(1, len(rows) // _ROWS)].double()
        self._count += len(rows)
        self._sum = self._sum + rows.sum(0)
        self._products = self._products + rows.T @ rows

    def moments(self) -> Moments:
        mean = self._sum / self._count
        return Moments(mean, self._products / self._count - torch.outer(mean, mean))


class _Walk(fx.Interpreter):
    def __init__(self, program: Program, layers: set[fx.Node]) -> None:
        super().__init__(program.module)
        self._program, self._layers = program, layers
        self.sums: dict[fx.Node, tuple[_Sums, _Sums]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._layers:
            leaf: Any = self._program.leaf(n)
            (x, *_), _ = self.fetch_args_kwargs_from_env(n)
            sums = self.sums.setdefault(n, (_Sums(), _Sums()))
            for each, sum_ in zip((x, value), sums, strict=True):
                sum_.add(_rows(leaf, each))
        return value


def _rows(leaf: Any, value: torch.Tensor) -> torch.Tensor:
    """The channels of each position, of shape (positions, channels)."""
    channel = -1 if isinstance(leaf, nn.Linear) else -len(leaf.kernel_size) - 1
    return value.movedim(channel, -1).reshape(-1, value.shape[channel])
