"""ReLU and the like before a rounding, which clamps by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxopt_onnxruntime.graph import Rewriter, array_of, given, operand
from fxopt_onnxruntime.grids import Grid, channel_grids, rounding_of

if TYPE_CHECKING:
    import onnx_ir as ir

CLAMPS = ("Relu", "Clip")


def drop_clamps(rewriter: Rewriter) -> None:
    """Removes clamps to bounds that the grid of the rounding behind them keeps anyway."""
    for node in rewriter.nodes(*CLAMPS):
        rounding = rounding_of(node.outputs[0])
        grids = None if rounding is None else channel_grids(rounding)
        if grids and all(is_kept_by(node, grid) for grid in grids):
            rewriter.replace(node.outputs[0], given(node))


def is_kept_by(node: ir.Node, grid: Grid) -> bool:
    """Whether rounding to ``grid`` clamps as tightly as ``node``, up to half a step."""
    bounds = bounds_of(node)
    if bounds is None:
        return False
    low, high = bounds
    return low - grid.low < grid.scale / 2 and grid.high - high < grid.scale / 2


def bounds_of(node: ir.Node) -> tuple[float, float] | None:
    """Between which values a clamp keeps its input; None if that is not constant."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = []
    for index, default in ((1, float("-inf")), (2, float("inf"))):
        value = operand(node, index)
        array = array_of(value)
        if value is not None and array is None:
            return None
        bounds.append(default if array is None else float(array.item()))
    return bounds[0], bounds[1]
