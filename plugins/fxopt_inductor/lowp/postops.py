"""Activations that the int8 operators apply to their result before it is rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxopt_inductor.lowp.grid import AnyGrid, ChannelGrid

aten = torch.ops.aten


@dataclass(frozen=True)
class PostOp:
    """An activation by the names that oneDNN's operators take.

    Attributes:
        name: Of the activation.
        scalars: Its parameters.
        algorithm: Which formula, where there are several.
        clamps: Low and high end, if it does nothing but clamp.
        scales: Whether f(c x) = c f(x) for positive c.
    """

    name: str
    scalars: tuple[float, ...] = ()
    algorithm: str = ""
    clamps: tuple[float, float] | None = field(default=None, compare=False)
    scales: bool = field(default=False, compare=False)


NONE = PostOp("none", clamps=(-math.inf, math.inf), scales=True)
RELU = PostOp("relu", clamps=(0.0, math.inf), scales=True)

# What the operators for convolutions take; those for linear layers take all below.
_BY_CONVOLUTIONS = {"none", "relu", "hardtanh", "hardswish", "swish"}


def post_op(node: fx.Node, linear: bool) -> PostOp | None:
    """The post-operation that computes what a node does; None when there is none.

    Args:
        node: Any node.
        linear: Whether it follows a linear layer, else a convolution.
    """
    found = _read(node)
    if found is None or (not linear and found.name not in _BY_CONVOLUTIONS):
        return None
    return found


def on_grid(op: PostOp, grid: AnyGrid | None) -> PostOp | None:
    """What is left of a post-operation when its result is rounded to ``grid``.

    Args:
        op: The post-operation.
        grid: None when the result is not rounded.

    Returns:
        None when it cannot be applied to a result that is scaled by channels.
    """
    if grid is None:
        return op
    if op.clamps is not None and grid.saturates(*op.clamps):
        return NONE
    return None if isinstance(grid, ChannelGrid) and not op.scales else op


def _read(node: fx.Node) -> PostOp | None:
    target: Any = node.target
    args: list[Any] = [arg for arg in node.args[1:] if not isinstance(arg, fx.Node)]
    if target is aten.relu.default:
        return RELU
    if target is aten.relu6.default:
        return _clamp(0.0, 6.0)
    if target is aten.hardtanh.default:
        low = args[0] if args else -1.0
        high = args[1] if len(args) > 1 else 1.0
        return _clamp(float(low), float(high))
    if target is aten.clamp.default:
        return _clamp(*_limits(node))
    if target is aten.clamp_min.default and args:
        return _clamp(float(args[0]), math.inf)
    return _other(node, args)


def _other(node: fx.Node, args: list[Any]) -> PostOp | None:
    target: Any = node.target
    if target is aten.hardswish.default:
        return PostOp("hardswish")
    if target is aten.silu.default:
        return PostOp("swish")
    if target is aten.tanh.default:
        return PostOp("tanh")
    if target is aten.gelu.default:
        return PostOp("gelu", algorithm=str(node.kwargs.get("approximate", "none")))
    if target is aten.leaky_relu.default:
        return PostOp("leaky_relu", (float(args[0]) if args else 0.01,), scales=True)
    return None


def _limits(node: fx.Node) -> tuple[float, float]:
    given: dict[str, Any] = dict(zip(("min", "max"), node.args[1:], strict=False))
    given |= node.kwargs
    low, high = given.get("min"), given.get("max")
    return (-math.inf if low is None else float(low), math.inf if high is None else float(high))


def _clamp(low: float, high: float) -> PostOp | None:
    if (low, high) == (0.0, math.inf):
        return RELU
    bounded = math.isfinite(low) and math.isfinite(high)
    return PostOp("hardtanh", (low, high), clamps=(low, high)) if bounded else None
