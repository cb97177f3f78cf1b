"""Convolutions whose windows do not overlap, as matrix products."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from fxopt_onnxruntime.graph import Rewriter, given, rank_of, sizes_of
from fxopt_onnxruntime.grids import grid_of, grid_of_node, rounding_of
from fxopt_onnxruntime.rules.gemm import replace_by_product, reshaped
from fxopt_onnxruntime.weights import bias_of, weight_of

if TYPE_CHECKING:
    import onnx_ir as ir


def lower_patch_convolutions(rewriter: Rewriter) -> None:
    """Turns convolutions over single positions or separate patches into Gemm, where that pays.

    It does where the result stays in float, which the integer kernel of Conv cannot give, and
    where there is but one position, as in squeeze-excite blocks.
    """
    for node in rewriter.nodes("Conv"):
        patches, weight, bias = _patches(node), weight_of(node.inputs[1]), bias_of(node)
        if patches is None or weight is None or bias is None or grid_of(node.inputs[0]) is None:
            continue
        rounding = rounding_of(node.outputs[0])
        rounds = rounding is not None and grid_of_node(rounding) is not None
        if not rounds or math.prod(patches) == 1:
            values = weight.values.reshape(len(weight.values), -1)
            flat = replace(weight, values=values, source=None)
            rows = _rows(rewriter, node, given(node), patches)
            replace_by_product(rewriter, node, rows, patches, flat, bias)


def _patches(node: ir.Node) -> list[int] | None:
    """How many patches there are along each dimension; None if windows overlap or leave gaps."""
    kernel, rank = node.attributes["kernel_shape"].as_ints(), rank_of(node.inputs[0])
    if rank is None or node.attributes["group"].as_int() != 1:
        return None
    pads, dilations = node.attributes.get("pads"), node.attributes.get("dilations")
    strides = node.attributes["strides"].as_ints()
    padded = pads is not None and any(pads.as_ints())
    dilated = dilations is not None and any(one != 1 for one in dilations.as_ints())
    sizes = sizes_of(given(node))[2:]
    if padded or dilated or tuple(strides) != tuple(kernel) or None in sizes:
        return None
    pairs = [(size, width) for size, width in zip(sizes, kernel, strict=True) if size is not None]
    return None if any(size % width for size, width in pairs) else [s // w for s, w in pairs]


def _rows(rewriter: Rewriter, node: ir.Node, value: ir.Value, patches: list[int]) -> ir.Value:
    """A matrix with a row for each patch."""
    kernel = node.attributes["kernel_shape"].as_ints()
    channels, count = sizes_of(value)[1], len(patches)
    assert channels is not None
    width = channels * math.prod(kernel)
    if math.prod(patches) > 1 and math.prod(kernel) == 1:
        order = [0, *range(2, count + 2), 1]
        value = rewriter.insert(node, "Transpose", value, perm=order)
    elif math.prod(patches) > 1:
        split = [size for pair in zip(patches, kernel, strict=True) for size in pair]
        value = reshaped(rewriter, node, value, -1, channels, *split)
        outer, inner = range(2, 2 * count + 2, 2), range(3, 2 * count + 3, 2)
        value = rewriter.insert(node, "Transpose", value, perm=[0, *outer, 1, *inner])
    return reshaped(rewriter, node, value, -1, width)
