"""Activations with a scale per channel, which integer kernels know for weights alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import Array, Rewriter, array_of, given, operand, producer_of, users_of
from fxopt_onnxruntime.grids import Grid, channel_grids, dequantized
from fxopt_onnxruntime.rules.clamps import CLAMPS, is_kept_by
from fxopt_onnxruntime.weights import dequantized_weight, weight_of

if TYPE_CHECKING:
    import onnx_ir as ir

_STEP = 1.0  # the one scale of the integers, once those of the channels are folded away


def fold_channel_scales(rewriter: Rewriter) -> None:
    """Moves scales per channel into the weights on both sides.

    Behind the rounding, a depthwise convolution multiplies each channel by weights of its own.
    Before it, a convolution may give each channel divided by its scale, since ReLU lets positive
    factors pass; where something else stands there, the division is a multiplication.

    What else takes the values gets them from the integers by a scale per channel; that pays where
    it is a convolution that gives these.
    """
    for node in rewriter.nodes("QuantizeLinear"):
        grids = channel_grids(node)
        if grids is None or len(given(node, 1).shape or ()) != 1:
            continue
        pairs = users_of(node.outputs[0])
        scales = np.array([grid.scale for grid in grids], np.float64)
        feeds = all(_feeds_depthwise(pair, len(grids)) for pair in pairs)
        value = _divided(rewriter, given(node), grids, scales)
        if value is None and feeds:
            value = _multiplied(rewriter, node, scales)
        if value is not None:
            _round(rewriter, node, value)
            for pair in pairs if feeds else ():
                _multiply_weights(rewriter, pair, scales)


def _feeds_depthwise(pair: ir.Node, channels: int) -> bool:
    users = users_of(pair.outputs[0])
    return all(
        user.op_type == "Conv"
        and user.attributes["group"].as_int() == channels
        and weight_of(user.inputs[1]) is not None
        for user in users
    )


def _multiply_weights(rewriter: Rewriter, pair: ir.Node, scales: Array) -> None:
    grid = Grid(_STEP, _zero_point(pair))
    for user in users_of(pair.outputs[0]):
        weight = weight_of(user.inputs[1])
        assert weight is not None
        each = np.repeat(scales, len(weight.scale) // len(scales))
        user.replace_input_with(1, dequantized_weight(rewriter, user, weight.scaled(each)))
    rewriter.replace(pair.outputs[0], dequantized(rewriter, pair, given(pair), grid))


def _multiplied(rewriter: Rewriter, node: ir.Node, scales: Array) -> ir.Value:
    """What a QuantizeLinear takes, divided by scales in front of it."""
    undivided = given(node)
    shape = (-1, *[1] * (len(undivided.shape or ()) - 2))
    inverse = rewriter.constant((1 / scales).astype(np.float32).reshape(shape))
    value = rewriter.insert(node, "Mul", undivided, inverse)
    value.type, value.shape = undivided.type, undivided.shape
    return value


def _round(rewriter: Rewriter, node: ir.Node, value: ir.Value) -> None:
    """Lets a QuantizeLinear with scales per channel take values divided by them instead."""
    integers = rewriter.insert(
        node,
        "QuantizeLinear",
        value,
        rewriter.constant(np.array(_STEP, np.float32)),
        rewriter.constant(np.array(_zero_point(node), np.uint8)),
    )
    rewriter.replace(node.outputs[0], integers)


def _divided(
    rewriter: Rewriter, value: ir.Value, grids: list[Grid], scales: Array
) -> ir.Value | None:
    """A value divided by scales, if the convolution that yields it can do that."""
    clamp = producer_of(value, *CLAMPS)
    if clamp is not None:
        if len(value.uses()) > 1 or not all(is_kept_by(clamp, grid) for grid in grids):
            return None
        value = given(clamp)
    conv = producer_of(value, "Conv")
    if conv is None or len(value.uses()) > 1 or value.is_graph_output():
        return None
    weight, bias = weight_of(conv.inputs[1]), array_of(operand(conv, 2))
    if weight is None or weight.axis != 0 or (bias is None and len(conv.inputs) > 2):
        return None
    conv.replace_input_with(1, dequantized_weight(rewriter, conv, weight.scaled(1 / scales)))
    if bias is not None:
        conv.replace_input_with(2, rewriter.constant((bias / scales).astype(np.float32)))
    return value


def _zero_point(node: ir.Node) -> int:
    zero_points = array_of(node.inputs[2])
    assert zero_points is not None
    return int(zero_points.flat[0])
