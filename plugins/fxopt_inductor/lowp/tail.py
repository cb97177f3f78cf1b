"""What an int8 layer can do to its result before it is stored: found by looking ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from fxopt_inductor.lowp.grid import AnyGrid, Grid
from fxopt_inductor.lowp.layers import QuantLayer
from fxopt_inductor.lowp.postops import NONE, RELU, PostOp, on_grid, post_op

aten = torch.ops.aten

GridOf = Callable[[fx.Node], AnyGrid | None]


@dataclass(frozen=True)
class Tail:
    """The nodes behind a layer that its operator computes as well.

    Attributes:
        end: The node whose value the operator gives.
        op: What it applies.
        grid: What all users of ``end`` round it to; None when it is wanted in float.
    """

    end: fx.Node
    op: PostOp
    grid: AnyGrid | None


@dataclass(frozen=True)
class Sum:
    """An addition that the operator before it can compute.

    Attributes:
        add: The addition.
        other: What is added; a fake quantizer, or what only moves the values of one.
        tail: What follows the addition.
    """

    add: fx.Node
    other: fx.Node
    tail: Tail


def find_tail(node: fx.Node, layer: QuantLayer, grid_of: GridOf) -> Tail:
    """What the operator of a layer can take over.

    Args:
        node: The layer.
        layer: What it computes.
        grid_of: Tells fake quantizers and their grids.
    """
    user = only_user(node)
    op = None if user is None else post_op(user, linear=layer.dims == 0)
    if user is not None and op is not None:
        grid = _common_grid(user, grid_of, layer)
        left = on_grid(op, grid)
        if left is not None:
            return Tail(user, left, grid)
        return Tail(node, NONE, None)
    return Tail(node, NONE, _common_grid(node, grid_of, layer))


def find_sum(tail: Tail, grid_of: GridOf, carried: GridOf) -> Sum | None:
    """The addition behind a layer, if its operator can compute that: both addends are rounded.

    The layer's own addend then need not be: that makes the result more exact, not less.

    Args:
        tail: Of the layer.
        grid_of: Tells fake quantizers and their grids.
        carried: Tells what yields values on a grid, be they only moved.
    """
    rounded = only_user(tail.end)
    add = None if rounded is None else only_user(rounded)
    if add is None or not isinstance(tail.grid, Grid) or tail.op != NONE:
        return None
    others = [arg for arg in add.args if arg is not rounded]
    if not _adds(add) or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    other = others[0]
    if not isinstance(carried(other), Grid) or _shape(other) != _shape(add):
        return None
    following = _after_sum(add, grid_of)
    return None if following is None else Sum(add, other, following)


def only_user(node: fx.Node) -> fx.Node | None:
    """The user of a node that has no other."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _after_sum(add: fx.Node, grid_of: GridOf) -> Tail | None:
    user, end, op = only_user(add), add, NONE
    if user is not None and post_op(user, linear=False) == RELU:
        end, op = user, RELU
    grid = _same_grid(end, grid_of)
    left = on_grid(op, grid)
    return Tail(end, left, grid) if left is not None and isinstance(grid, Grid) else None


def _adds(node: fx.Node) -> bool:
    plain = node.target is aten.add.Tensor and not node.kwargs and len(node.args) == 2
    return plain and node.meta["val"].dtype is torch.float32


def _common_grid(node: fx.Node, grid_of: GridOf, layer: QuantLayer) -> AnyGrid | None:
    grid = _same_grid(node, grid_of)
    # the channels of a linear layer's output come last, not at dimension 1
    return grid if isinstance(grid, Grid) or layer.dims else None


def _same_grid(node: fx.Node, grid_of: GridOf) -> AnyGrid | None:
    grids = [grid_of(user) for user in node.users]
    if not grids or any(grid is None or grid != grids[0] for grid in grids):
        return None
    return grids[0]


def _shape(node: fx.Node) -> torch.Size:
    value: torch.Tensor = node.meta["val"]
    return value.shape
