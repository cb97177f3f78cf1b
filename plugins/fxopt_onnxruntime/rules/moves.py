"""Operators that only move values run on integers if they stand between roundings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxopt_onnxruntime.graph import Rewriter, users_of
from fxopt_onnxruntime.grids import Grid, grid_of, grid_of_node, rounded

if TYPE_CHECKING:
    import onnx_ir as ir

_MOVES = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather",
    "Expand", "Tile", "Identity", "MaxPool", "DepthToSpace", "SpaceToDepth", "Concat", "Resize",
)  # fmt: skip


def round_after_moves(rewriter: Rewriter) -> None:
    """Rounds what was moved to the grid that it lies on already, which changes nothing.

    From the pairs on both sides the runtime sees that it may move the integers themselves.
    """
    for node in rewriter.nodes(*_MOVES):
        grid = _common_grid(node)
        if grid is not None and len(node.outputs[0].uses()) > 0 and _keeps_values(node):
            for output in node.outputs:
                if not _all_round(output, grid):
                    _round(rewriter, output, grid)


def _common_grid(node: ir.Node) -> Grid | None:
    """The grid that all that is moved lies on."""
    moved = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    grids = {grid_of(value) for value in moved}
    return grids.pop() if len(grids) == 1 else None


def _keeps_values(node: ir.Node) -> bool:
    mode = node.attributes.get("mode")
    if node.op_type == "Resize":
        return mode is None or mode.as_string() == "nearest"
    indices = node.op_type == "MaxPool" and len(node.outputs) > 1
    return not indices


def _all_round(value: ir.Value, grid: Grid) -> bool:
    users = users_of(value)
    return bool(users) and all(
        user.op_type == "QuantizeLinear" and grid_of_node(user) == grid for user in users
    )


def _round(rewriter: Rewriter, value: ir.Value, grid: Grid) -> None:
    uses = list(value.uses())
    result = rounded(rewriter, rewriter.after(value), value, grid)
    result.type, result.shape = value.type, value.shape
    for user, index in uses:
        user.replace_input_with(index, result)
