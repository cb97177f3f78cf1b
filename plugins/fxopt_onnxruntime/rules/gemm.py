"""A layer as one integer matrix product: the kernel that may give integers or floats."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import Array, Rewriter
from fxopt_onnxruntime.grids import Grid, grid_of, grid_of_node, rounded, rounding_of
from fxopt_onnxruntime.kernels import CONVOLUTION
from fxopt_onnxruntime.weights import Weight, dequantized_bias, dequantized_weight, fitted

if TYPE_CHECKING:
    import onnx_ir as ir


def insert_gemm(
    rewriter: Rewriter,
    before: ir.Node,
    rows: ir.Value,
    weight: Weight,
    bias: Array,
    grid: Grid,
    result: ir.Value,
) -> ir.Value:
    """The product of a matrix and weights, plus the bias, in front of ``before``.

    Args:
        rewriter: Where it goes.
        before: The node in front of which it goes: a part of the layer.
        rows: The matrix; it lies on ``grid``.
        weight: Outputs first.
        bias: One float an output.
        grid: That of ``rows``.
        result: What the product becomes once it is reshaped: if that is rounded, the product is
            rounded already.
    """
    weight = fitted(weight, bias, grid.scale)
    weights = dequantized_weight(rewriter, before, weight)
    rewriter.integer.add(weights)
    sums = dequantized_bias(rewriter, before, bias, weight, grid.scale)
    suffix = f".{CONVOLUTION}" if before.op_type == "Conv" else ""
    product = rewriter.insert(before, "Gemm", rows, weights, sums, transB=1, suffix=suffix)
    rounding = rounding_of(result)
    after = None if rounding is None else grid_of_node(rounding)
    return product if after is None else rounded(rewriter, before, product, after)


def replace_by_product(
    rewriter: Rewriter,
    conv: ir.Node,
    rows: ir.Value,
    positions: list[int],
    weight: Weight,
    bias: Array,
) -> None:
    """Computes a convolution as the product of what it sees at each position and its weights.

    Args:
        rewriter: Where that happens.
        conv: The convolution; its input lies on a grid.
        rows: What it sees, a row for each position; on the same grid.
        positions: How many there are along each dimension.
        weight: Outputs first, the rest as the columns of ``rows``.
        bias: One float an output.
    """
    grid = grid_of(conv.inputs[0])
    assert grid is not None
    product = insert_gemm(rewriter, conv, rows, weight, bias, grid, conv.outputs[0])
    outputs, count = len(weight.values), len(positions)
    if math.prod(positions) == 1:
        result = reshaped(rewriter, conv, product, -1, outputs, *positions)
    else:
        product = reshaped(rewriter, conv, product, -1, *positions, outputs)
        order = [0, count + 1, *range(1, count + 1)]
        result = rewriter.insert(conv, "Transpose", product, perm=order)
    rewriter.replace(conv.outputs[0], result)


def reshaped(rewriter: Rewriter, before: ir.Node, value: ir.Value, *sizes: int) -> ir.Value:
    """A value in another shape; one size may be -1."""
    return rewriter.insert(before, "Reshape", value, rewriter.constant(np.array(sizes, np.int64)))
