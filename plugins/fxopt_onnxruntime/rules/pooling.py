"""Averages over all positions, as the operator that has an integer kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import Rewriter, array_of, given, operand, rank_of
from fxopt_onnxruntime.grids import grid_of_node, rounded, rounding_of

if TYPE_CHECKING:
    import onnx_ir as ir


def pool_globally(rewriter: Rewriter) -> None:
    """Turns ReduceMean over all dimensions but batch and channels into GlobalAveragePool."""
    for node in rewriter.nodes("ReduceMean"):
        if _takes_all_positions(node):
            pooled = rewriter.insert(node, "GlobalAveragePool", given(node))
            rewriter.replace(node.outputs[0], _without_positions(rewriter, node, pooled))


def _takes_all_positions(node: ir.Node) -> bool:
    axes, rank = array_of(operand(node, 1)), rank_of(node.inputs[0])
    if axes is None or rank is None or rank < 3:
        return False
    return sorted(int(axis) % rank for axis in axes.ravel()) == list(range(2, rank))


def _without_positions(rewriter: Rewriter, node: ir.Node, pooled: ir.Value) -> ir.Value:
    """The averages in the shape that ``node`` gave them; rounded first if they are afterwards."""
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
