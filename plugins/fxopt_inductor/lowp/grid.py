"""Grids of quantized values: what a fake quantizer of the exported program rounds to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxopt_inductor.lowp.constants import constant

aten = torch.ops.aten

_LEVELS = 255  # codes are 0..255


@dataclass(frozen=True)
class Grid:
    """Real values ``scale * (code - zero_point)``, with codes in uint8.

    Attributes:
        scale: Distance between neighbours.
        zero_point: The code of zero, in 0..255.
    """

    scale: float
    zero_point: int

    @property
    def minimum(self) -> float:
        """The least value."""
        return -self.scale * self.zero_point

    @property
    def maximum(self) -> float:
        """The greatest value."""
        return self.scale * (_LEVELS - self.zero_point)

    def saturates(self, low: float, high: float) -> bool:
        """Whether rounding to this grid clamps to ``low..high`` already."""
        half = self.scale / 2
        return self.minimum >= low - half and self.maximum <= high + half


@dataclass(frozen=True, eq=False)
class ChannelGrid:
    """A grid with a scale for each channel (dimension 1) and one zero point.

    Attributes:
        scales: One per channel, float32.
        zero_point: The code of zero.
        rank: How many dimensions the values have.
    """

    scales: torch.Tensor
    zero_point: int
    rank: int

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ChannelGrid) or self.rank != other.rank:
            return False
        return self.zero_point == other.zero_point and torch.equal(self.scales, other.scales)

    def __hash__(self) -> int:
        return hash((self.zero_point, self.rank, len(self.scales)))

    def broadcast(self, per_channel: torch.Tensor) -> torch.Tensor:
        """One number per channel in a shape that goes with the values."""
        return per_channel.view(1, -1, *[1] * (self.rank - 2))

    def saturates(self, low: float, high: float) -> bool:
        """Whether rounding to this grid clamps each channel to ``low..high`` already."""
        scales = self.scales.tolist()
        return all(Grid(scale, self.zero_point).saturates(low, high) for scale in scales)


AnyGrid = Grid | ChannelGrid


def grid_of(module: fx.GraphModule, node: fx.Node) -> AnyGrid | None:
    """The grid that a node rounds to; None when it is no fake quantizer with 256 values.

    Args:
        module: Holds the constants that ``node`` reads.
        node: Any node.
    """
    if not _is_float32(node):
        return None
    if node.target is aten.fake_quantize_per_tensor_affine.default:
        _, scale, zero_point, low, high = node.args
        return _tensor_grid(scale, zero_point, low, high)
    if node.target is aten.fake_quantize_per_channel_affine.default:
        return _channel_grid(module, node.meta["val"].dim(), *node.args[1:])
    return None


def _tensor_grid(scale: Any, zero_point: Any, low: Any, high: Any) -> Grid | None:
    if high - low != _LEVELS or not isinstance(scale, float):
        return None
    return Grid(scale, zero_point - low)


def _channel_grid(
    module: fx.GraphModule,
    rank: int,
    scale: Any,
    zero_point: Any,
    axis: Any,
    low: Any,
    high: Any,
) -> ChannelGrid | None:
    scales, points = constant(module, scale), constant(module, zero_point)
    if scales is None or points is None or axis != 1 or high - low != _LEVELS:
        return None
    if bool((points != points[0]).any()) or scales.dtype is not torch.float32:
        return None
    return ChannelGrid(scales.detach(), int(points[0]) - low, rank)


def _is_float32(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype is torch.float32
