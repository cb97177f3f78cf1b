"""Convolutions between roundings: their weights and bias as the integer kernel wants them."""

from __future__ import annotations

from fxopt_onnxruntime.graph import Rewriter
from fxopt_onnxruntime.grids import grid_of, grid_of_node, rounding_of
from fxopt_onnxruntime.weights import (
    bias_of,
    dequantized_bias,
    dequantized_weight,
    fitted,
    weight_of,
)


def lower_convolutions(rewriter: Rewriter) -> None:
    """Completes the pairs around convolutions whose result is rounded.

    Others stay in float unless they have become products. ConvInteger, which gives the sums
    themselves, is no way out: with the passes over memory that it takes to make floats of them,
    it is slower than a convolution in float.
    """
    for node in rewriter.nodes("Conv"):
        grid, weight, bias = grid_of(node.inputs[0]), weight_of(node.inputs[1]), bias_of(node)
        rounding = rounding_of(node.outputs[0])
        rounds = rounding is not None and grid_of_node(rounding) is not None
        if grid is None or weight is None or bias is None or not rounds:
            continue
        weight = fitted(weight, bias, grid.scale)
        weights = dequantized_weight(rewriter, node, weight)
        rewriter.integer.add(weights)
        node.replace_input_with(1, weights)
        if len(node.inputs) > 2:
            sums = dequantized_bias(rewriter, node, bias, weight, grid.scale)
            node.replace_input_with(2, sums)
