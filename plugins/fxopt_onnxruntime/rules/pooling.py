"""Averages and extremes over all positions, as the operators with the faster kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import Rewriter, array_of, given, operand, producer_of, rank_of
from fxopt_onnxruntime.grids import channel_grids, grid_of_node, rounded, rounding_of

if TYPE_CHECKING:
    import onnx_ir as ir


def pool_globally(rewriter: Rewriter) -> None:
    """Turns ReduceMean over all dimensions but batch and channels into GlobalAveragePool."""
    for node in rewriter.nodes("ReduceMean"):
        if _takes_all_positions(node):
            pooled = rewriter.insert(node, "GlobalAveragePool", given(node))
            rewriter.replace(node.outputs[0], _without_positions(rewriter, node, pooled))


def pool_extremes(rewriter: Rewriter) -> None:
    """Turns ReduceMax and ReduceMin of what was transposed into GlobalMaxPool.

    The runtime would take them across the untransposed values, which is far slower than to
    transpose these and then to go along them.
    """
    for node in rewriter.nodes("ReduceMax", "ReduceMin"):
        value = given(node)
        if producer_of(value, "Transpose") is None or not _takes_all_positions(node):
            continue
        if value.dtype is None or not value.dtype.is_floating_point():  # has no kernel for others
            continue
        if node.op_type == "ReduceMax":
            pooled = rewriter.insert(node, "GlobalMaxPool", value)
        else:
            opposite = rewriter.insert(node, "Neg", value)
            pooled = rewriter.insert(node, "GlobalMaxPool", opposite)
            pooled = rewriter.insert(node, "Neg", pooled)
        rewriter.replace(node.outputs[0], _without_positions(rewriter, node, pooled))


def reduce_integers(rewriter: Rewriter) -> None:
    """Finds the extremes of rounded values among their integers, whose order is the same."""
    for node in rewriter.nodes("ReduceMax", "ReduceMin"):
        pair = producer_of(node.inputs[0], "DequantizeLinear")
        if pair is None or channel_grids(pair) is None or not _takes_all_positions(node):
            continue
        kept = node.attributes.get("keepdims")
        keepdims = 1 if kept is None else kept.as_int()
        axes = given(node, 1)
        integers = rewriter.insert(node, node.op_type, given(pair), axes, keepdims=keepdims)
        grid = [given(pair, 1), given(pair, 2)]
        values = rewriter.insert(node, "DequantizeLinear", integers, *grid, axis=1)
        rewriter.replace(node.outputs[0], values)


def _takes_all_positions(node: ir.Node) -> bool:
    axes, rank = array_of(operand(node, 1)), rank_of(node.inputs[0])
    if axes is None or rank is None or rank < 3:
        return False
    return sorted(int(axis) % rank for axis in axes.ravel()) == list(range(2, rank))


def _without_positions(rewriter: Rewriter, node: ir.Node, pooled: ir.Value) -> ir.Value:
    """What was pooled, in the shape that ``node`` gives; rounded first if it is afterwards."""
    kept = node.attributes.get("keepdims")
    if kept is None or kept.as_int():
        return pooled
    rounding = rounding_of(node.outputs[0])
    grid = None if rounding is None else grid_of_node(rounding)
    if grid is not None:
        pooled = rounded(rewriter, node, pooled, grid)
    rank = rank_of(node.inputs[0])
    assert rank is not None
    axes = rewriter.constant(np.arange(2, rank, dtype=np.int64))
    return rewriter.insert(node, "Squeeze", pooled, axes)
