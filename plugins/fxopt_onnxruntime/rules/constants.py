"""Int8 weights: recognised before constants are folded, and folded where nobody wants them."""

from __future__ import annotations

import numpy as np

from fxopt_onnxruntime.graph import Array, Rewriter, array_of, producer_of
from fxopt_onnxruntime.weights import Weight, dequantized_weight, weight_of


def restore_weights(rewriter: Rewriter) -> None:
    """Turns integers that are cast and multiplied by their scales into a DequantizeLinear."""
    for node in rewriter.nodes("Mul"):
        cast = producer_of(node.inputs[0], "Cast")
        values = None if cast is None else array_of(cast.inputs[0])
        scale = array_of(node.inputs[1])
        if cast is None or values is None or scale is None or values.dtype != np.int8:
            continue
        axis = _axis(values, scale)
        if axis is not None:
            vector = np.broadcast_to(scale.ravel(), values.shape[axis]).astype(np.float64)
            weight = Weight(values, vector, axis, cast.inputs[0])
            rewriter.replace(node.outputs[0], dequantized_weight(rewriter, node, weight))


def settle_weights(rewriter: Rewriter) -> None:
    """Folds the weights that no integer kernel takes: the runtime would do it at every call."""
    for node in rewriter.nodes("DequantizeLinear"):
        weight = weight_of(node.outputs[0])
        if weight is not None and node.outputs[0] not in rewriter.integer:
            rewriter.replace(node.outputs[0], rewriter.constant(weight.floats()))


def _axis(values: Array, scale: Array) -> int | None:
    """The one dimension along which scales differ; None if there are several."""
    if scale.size == 1:
        return 0
    shape = (1,) * (values.ndim - scale.ndim) + scale.shape
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    fits = len(axes) == 1 and shape[axes[0]] == values.shape[axes[0]]
    return axes[0] if fits else None
