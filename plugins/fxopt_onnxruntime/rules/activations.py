"""Activations between a convolution and a rounding.

ONNX Runtime's integer convolution gives integers, never floats. What stands between it and the
next rounding must therefore take a rounded value; this finds the grid for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import Array, Rewriter, given, producer_of, users_of
from fxopt_onnxruntime.grids import (
    LEVELS,
    Grid,
    dequantized,
    grid_of,
    grid_of_node,
    rounded,
    rounding_of,
)
from fxopt_onnxruntime.rules.clamps import CLAMPS, is_kept_by
from fxopt_onnxruntime.weights import weight_of

if TYPE_CHECKING:
    import onnx_ir as ir

# The additional rounding may cost so many steps of the grid behind the activation, half of it to
# either side. What would cost more is left to a convolution that gives floats.
_MOST_STEPS = 2.0
_SAMPLES = 8192

Function = Callable[[Array], Array]


def round_before_activations(rewriter: Rewriter) -> None:
    """Rounds what an integer convolution gives to an activation, where little is lost by it."""
    for node in rewriter.nodes("Conv"):
        taken = grid_of(node.inputs[0]) is not None and weight_of(node.inputs[1]) is not None
        last = _activation_after(node) if taken else None
        rounding = None if last is None else rounding_of(last.outputs[0])
        grid = None if rounding is None else grid_of_node(rounding)
        if last is not None and grid is not None:
            _separate(rewriter, node.outputs[0], last, grid)


def _activation_after(conv: ir.Node) -> ir.Node | None:
    """The last node of the activation that alone takes the result of a convolution."""
    value = conv.outputs[0]
    users = users_of(value)
    if value.is_graph_output() or not users:
        return None
    if len(users) == 1:
        return users[0] if users[0].op_type in (*_FUNCTIONS, *CLAMPS) else None
    return _silu(value, users)


def _silu(value: ir.Value, users: list[ir.Node]) -> ir.Node | None:
    """The product of a value and its sigmoid."""
    kinds = sorted(user.op_type for user in users)
    product = next((user for user in users if user.op_type == "Mul"), None)
    if kinds != ["Mul", "Sigmoid"] or product is None:
        return None
    other = [one for one in product.inputs if one is not value]
    gate = producer_of(other[0], "Sigmoid") if len(other) == 1 else None
    alone = gate is not None and gate.inputs[0] is value and len(gate.outputs[0].uses()) == 1
    return product if alone else None


def _separate(rewriter: Rewriter, value: ir.Value, last: ir.Node, grid: Grid) -> None:
    if last.op_type in CLAMPS:
        if not is_kept_by(last, grid):
            _clamp_integers(rewriter, value, last, grid)
        return
    before = grid_before(_FUNCTIONS[last.op_type](last), grid)
    if before is None:
        return
    if last.op_type == "HardSwish":
        before = _with_three_on_it(before)
    first = users_of(value)[0] if last.op_type != "Mul" else rewriter.after(value)
    result = rounded(rewriter, first, value, before)
    _GATES.get(last.op_type, _take)(rewriter, value, result, last, before)


def _take(rewriter: Rewriter, value: ir.Value, result: ir.Value, last: ir.Node, grid: Grid) -> None:
    last.replace_input_with(0, result)


def _clamp_integers(rewriter: Rewriter, value: ir.Value, last: ir.Node, grid: Grid) -> None:
    """ReLU on integers whose zero is not the least: as LeakyRelu, which has a kernel for them."""
    result = rounded(rewriter, last, value, grid)
    if last.op_type == "Relu":
        clamped = rewriter.insert(last, "LeakyRelu", result, alpha=0.0)
        rewriter.replace(last.outputs[0], clamped)
    else:
        last.replace_input_with(0, result)


def _gate_hardswish(
    rewriter: Rewriter, value: ir.Value, result: ir.Value, last: ir.Node, grid: Grid
) -> None:
    """Hardswish, x * clamp(x / 6 + 1/2, 0, 1), all of it on integers.

    The gate is the same integers read with another scale and zero point, clamped by rounding to
    the grid of 0 to 1. LeakyRelu with a slope of 1 is the operator with an integer kernel that
    goes from one grid to another.
    """
    pair = producer_of(result, "DequantizeLinear")
    assert pair is not None
    gate = dequantized(rewriter, last, given(pair), Grid(grid.scale / 6, 0))
    gate = rewriter.insert(last, "LeakyRelu", gate, alpha=1.0)
    gate = rounded(rewriter, last, gate, Grid(1 / LEVELS, 0))
    rewriter.replace(last.outputs[0], rewriter.insert(last, "Mul", result, gate))


def _gate_silu(
    rewriter: Rewriter, value: ir.Value, result: ir.Value, last: ir.Node, grid: Grid
) -> None:
    """SiLU, x * sigmoid(x), the gate rounded as well."""
    gate = rewriter.insert(last, "Sigmoid", result)
    gate = rounded(rewriter, last, gate, Grid(1 / LEVELS, 0))
    rewriter.replace(last.outputs[0], rewriter.insert(last, "Mul", result, gate))


def _with_three_on_it(grid: Grid) -> Grid:
    """A grid no narrower than ``grid`` that starts at -3, where hardswish does."""
    steps = math.floor(3 / max(grid.scale, (grid.high + 3) / LEVELS))
    return Grid(3 / steps, steps)


def grid_before(function: Function, grid: Grid) -> Grid | None:
    """The grid for the input of an activation whose output is rounded to ``grid``.

    It spans the inputs that make a difference of more than half a step behind the activation.

    Returns:
        None if it would be too coarse.
    """
    reach = max(16.0, 2 * grid.high, -2 * grid.low)
    x = np.linspace(-reach, reach, _SAMPLES)
    y = np.clip(function(x), grid.low, grid.high)
    low = min(float(x[_settled(y, grid)]), 0.0)
    high = max(float(x[::-1][_settled(y[::-1], grid)]), 0.0)
    scale = (high - low) / LEVELS
    if scale <= 0 or scale * np.abs(np.diff(y)).max() > _MOST_STEPS * grid.scale * (x[1] - x[0]):
        return None
    return Grid(scale, round(-low / scale))


def _settled(y: Array, grid: Grid) -> int:
    """The last index up to which values stay within half a step."""
    spread = np.maximum.accumulate(y) - np.minimum.accumulate(y)
    return int(np.searchsorted(spread, grid.scale / 2, side="right")) - 1


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _gelu(x: Array) -> Array:
    errors: Array = np.vectorize(math.erf)(x / math.sqrt(2))
    result: Array = x * 0.5 * (1 + errors)
    return result


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def _hard_sigmoid(node: ir.Node) -> Function:
    alpha, beta = _number(node, "alpha", 0.2), _number(node, "beta", 0.5)
    return lambda x: np.clip(alpha * x + beta, 0, 1)


def _leaky_relu(node: ir.Node) -> Function:
    alpha = _number(node, "alpha", 0.01)
    return lambda x: np.where(x < 0, alpha * x, x)


def _elu(node: ir.Node) -> Function:
    alpha = _number(node, "alpha", 1.0)
    return lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


_FUNCTIONS: dict[str, Callable[[ir.Node], Function]] = {
    "HardSwish": lambda node: lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "HardSigmoid": _hard_sigmoid,
    "Sigmoid": lambda node: _sigmoid,
    "Mul": lambda node: lambda x: x * _sigmoid(x),  # of a value and its sigmoid
    "Tanh": lambda node: np.tanh,
    "Gelu": lambda node: _gelu,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
}

_GATES = {"HardSwish": _gate_hardswish, "Mul": _gate_silu}
