"""Grids: the scale and zero point of a pair of QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import Array, Rewriter, array_of, producer_of, users_of

if TYPE_CHECKING:
    import onnx_ir as ir

LEVELS = 255
"""The largest integer of an activation, which is uint8."""


@dataclass(frozen=True)
class Grid:
    """The values that a rounded activation can take.

    Attributes:
        scale: Distance between neighbours, float32; positive.
        zero_point: The integer that stands for zero.
    """

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The least value."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """The largest value."""
        return (LEVELS - self.zero_point) * self.scale


def grid_of(value: ir.Value | None) -> Grid | None:
    """The grid that a value lies on; None if it was not dequantized from uint8 by one scale."""
    node = producer_of(value, "DequantizeLinear")
    return None if node is None else grid_of_node(node)


def grid_of_node(node: ir.Node) -> Grid | None:
    """The grid of a QuantizeLinear or DequantizeLinear; None for one per channel."""
    grids, scale = channel_grids(node), array_of(node.inputs[1])
    return grids[0] if grids and scale is not None and scale.ndim == 0 else None


def channel_grids(node: ir.Node) -> list[Grid] | None:
    """The grids of all channels of a QuantizeLinear or DequantizeLinear of activations."""
    if len(node.inputs) < 3:
        return None
    scale, zero_point = array_of(node.inputs[1]), array_of(node.inputs[2])
    if scale is None or zero_point is None or zero_point.dtype != np.uint8:
        return None
    pairs = zip(scale.ravel(), np.broadcast_to(zero_point.ravel(), scale.size), strict=True)
    return [Grid(float(one), int(zero)) for one, zero in pairs]


def dequantized(rewriter: Rewriter, before: ir.Node, integers: ir.Value, grid: Grid) -> ir.Value:
    """The values that integers of a grid stand for."""
    scale, zero_point = _constants(rewriter, grid)
    return rewriter.insert(before, "DequantizeLinear", integers, scale, zero_point)


def rounded(rewriter: Rewriter, before: ir.Node, value: ir.Value, grid: Grid) -> ir.Value:
    """A value, rounded to a grid: a pair of QuantizeLinear and DequantizeLinear."""
    integers = rewriter.insert(before, "QuantizeLinear", value, *_constants(rewriter, grid))
    return dequantized(rewriter, before, integers, grid)


def rounding_of(value: ir.Value) -> ir.Node | None:
    """The one QuantizeLinear that takes a value, if nothing else does."""
    users = users_of(value)
    alone = len(users) == 1 and not value.is_graph_output()
    return users[0] if alone and users[0].op_type == "QuantizeLinear" else None


def _constants(rewriter: Rewriter, grid: Grid) -> tuple[ir.Value, ir.Value]:
    scale: Array = np.array(grid.scale, np.float32)
    return rewriter.constant(scale), rewriter.constant(np.array(grid.zero_point, np.uint8))
