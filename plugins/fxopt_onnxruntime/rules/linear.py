"""Linear layers as matrix products, whatever the rank of their input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import (
    Array,
    Rewriter,
    array_of,
    given,
    operand,
    producer_of,
    rank_of,
    sizes_of,
    users_of,
)
from fxopt_onnxruntime.grids import Grid, grid_of
from fxopt_onnxruntime.rules.gemm import insert_gemm, reshaped
from fxopt_onnxruntime.weights import Weight, weight_of

if TYPE_CHECKING:
    import onnx_ir as ir


def lower_linear_layers(rewriter: Rewriter) -> None:
    """Turns products with int8 weights into Gemm.

    For Gemm, unlike MatMul, the runtime has an integer kernel that adds the bias as well, packs
    the weights beforehand, and takes scales per channel at full speed.
    """
    for node in rewriter.nodes("MatMul", "Gemm"):
        layer, grid = _layer(node), grid_of(node.inputs[0])
        if layer is not None and grid is not None and rank_of(node.inputs[0]) is not None:
            weight, bias, last = layer
            result = _product(rewriter, node, last, weight, bias, grid)
            rewriter.replace(last.outputs[0], result)


def _product(
    rewriter: Rewriter, node: ir.Node, last: ir.Node, weight: Weight, bias: Array, grid: Grid
) -> ir.Value:
    outputs, inputs = weight.values.shape
    rows, wanted = given(node), last.outputs[0]
    if rank_of(rows) == 2:
        return insert_gemm(rewriter, node, rows, weight, bias, grid, wanted)
    rows = reshaped(rewriter, node, rows, -1, inputs)
    product = insert_gemm(rewriter, node, rows, weight, bias, grid, wanted)
    return rewriter.insert(node, "Reshape", product, _shape(rewriter, node, outputs))


def _layer(node: ir.Node) -> tuple[Weight, Array, ir.Node] | None:
    """Weights with outputs first, the bias, and the last node of a linear layer."""
    flipped = producer_of(node.inputs[1], "Transpose")
    weight = weight_of(node.inputs[1] if flipped is None else flipped.inputs[0])
    is_transposed = flipped is not None or _number(node, "transB", 0) == 1
    if weight is None or weight.values.ndim != 2 or weight.axis != 0 or not is_transposed:
        return None
    if node.op_type == "MatMul":
        return (weight, *_following_bias(node, len(weight.scale)))
    bias = _own_bias(node, len(weight.scale))
    return None if bias is None else (weight, bias, node)


def _own_bias(node: ir.Node, outputs: int) -> Array | None:
    """The bias of a Gemm; None if it computes more than a linear layer does."""
    bias = array_of(operand(node, 2)) if len(node.inputs) > 2 else np.zeros(outputs)
    plain = _number(node, "alpha", 1) == _number(node, "beta", 1) == 1
    if bias is None or bias.ndim != 1 or not plain or _number(node, "transA", 0):
        return None
    return np.broadcast_to(bias, outputs)


def _following_bias(node: ir.Node, outputs: int) -> tuple[Array, ir.Node]:
    """The bias that alone is added to a product, and the node that adds it."""
    product = node.outputs[0]
    users = users_of(product)
    if len(users) == 1 and users[0].op_type == "Add" and not product.is_graph_output():
        other = [value for value in users[0].inputs if value is not product]
        bias = array_of(other[0]) if len(other) == 1 else None
        if bias is not None and bias.shape == (outputs,):
            return bias, users[0]
    return np.zeros(outputs), node


def _shape(rewriter: Rewriter, node: ir.Node, outputs: int) -> ir.Value:
    """The shape of the layer's output, as a constant if at most one size is unknown."""
    sizes = [*sizes_of(given(node))[:-1], outputs]
    if sizes.count(None) <= 1:
        known = [-1 if size is None else size for size in sizes]
        return rewriter.constant(np.array(known, np.int64))
    leading = rewriter.insert(node, "Shape", given(node), start=0, end=len(sizes) - 1)
    last = rewriter.constant(np.array([outputs], np.int64))
    return rewriter.insert(node, "Concat", leading, last, axis=0)


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)
