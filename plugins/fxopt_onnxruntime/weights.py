"""Weights in int8, and biases in int32 to go with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import Array, Rewriter, array_of, operand, producer_of

if TYPE_CHECKING:
    import onnx_ir as ir

_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Weight:
    """Weights and their scales.

    Attributes:
        values: int8.
        scale: float64, one for each channel.
        axis: The dimension of the channels.
        source: The constant that holds ``values`` already, if one does.
    """

    values: Array
    scale: Array
    axis: int
    source: ir.Value | None = None

    def floats(self) -> Array:
        """The weights that the integers stand for."""
        return (self.values * self._spread(self.scale)).astype(np.float32)

    def scaled(self, factor: Array) -> Weight:
        """Weights multiplied by one positive factor a channel."""
        return replace(self, scale=self.scale * factor)

    def coarsened(self, factor: Array) -> Weight:
        """About the same weights, on a grid that is coarser by one factor a channel."""
        values = np.round(self.values / self._spread(factor)).astype(np.int8)
        return Weight(values, self.scale * factor, self.axis)

    def _spread(self, vector: Array) -> Array:
        shape = [1] * self.values.ndim
        shape[self.axis] = -1
        return vector.reshape(shape)


def weight_of(value: ir.Value | None) -> Weight | None:
    """The weights that a DequantizeLinear yields; None if it takes anything but constants."""
    node = producer_of(value, "DequantizeLinear")
    if node is None:
        return None
    values, scale = array_of(node.inputs[0]), array_of(node.inputs[1])
    if values is None or scale is None or values.dtype != np.int8:
        return None
    axis = node.attributes["axis"].as_int()
    return Weight(values, scale.astype(np.float64), axis, node.inputs[0])


def bias_of(conv: ir.Node) -> Array | None:
    """The bias of a convolution, zeros where there is none; None if it is not constant."""
    weight = weight_of(conv.inputs[1])
    if weight is None or weight.axis != 0:
        return None
    return array_of(operand(conv, 2)) if len(conv.inputs) > 2 else np.zeros(len(weight.scale))


def dequantized_weight(rewriter: Rewriter, before: ir.Node, weight: Weight) -> ir.Value:
    """A DequantizeLinear of weights."""
    values = weight.source or rewriter.constant(weight.values)
    scale = rewriter.constant(weight.scale.astype(np.float32))
    zero_point = rewriter.constant(np.zeros(weight.scale.shape, np.int8))
    return rewriter.insert(before, "DequantizeLinear", values, scale, zero_point, axis=weight.axis)


def dequantized_bias(
    rewriter: Rewriter, before: ir.Node, bias: Array, weight: Weight, scale: float
) -> ir.Value:
    """A bias on the grid of the sums that it is added to: that of the products.

    Args:
        rewriter: Where it goes.
        before: The node that takes it.
        bias: One float a channel.
        weight: As :func:`fitted` gives it.
        scale: That of the activations.
    """
    grid = (weight.scale * scale).astype(np.float32)
    integers = np.round(bias / grid.astype(np.float64)).clip(-_LARGEST, _LARGEST)
    return rewriter.insert(
        before,
        "DequantizeLinear",
        rewriter.constant(integers.astype(np.int32)),
        rewriter.constant(grid),
        rewriter.constant(np.zeros(grid.shape, np.int32)),
        axis=0,
    )


def fitted(weight: Weight, bias: Array, scale: float) -> Weight:
    """Weights on a grid so coarse that the bias, in steps of it, fits into 32 bits.

    Where that changes them, they are millions of times smaller than the bias.
    """
    excess = np.abs(bias) / (weight.scale * scale * (_LARGEST // 2))
    return weight.coarsened(np.maximum(excess, 1.0)) if (excess > 1).any() else weight
