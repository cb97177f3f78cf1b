"""LSTMs whose matrix products run on integers, with ranges that the runtime finds on each call."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import Array, Rewriter, array_of, operand, producer_of

if TYPE_CHECKING:
    import onnx_ir as ir

_MARK = ".int8"
_LARGEST = 127
_WITH_AXES = 4  # inputs of a Slice whose steps are the usual ones
_MICROSOFT = "com.microsoft"
_LAYERS = ("LSTM", "GRU", "RNN")
_STATES = (5, 6)  # inputs that the layer begins with
_ONLY_MOVE = ("Expand", "Slice", "Reshape", "Unsqueeze", "Squeeze", "Transpose")
_MERGED_RANK = 3  # steps, batch, and the features of all directions
_GIVEN = 8  # inputs that LSTM and DynamicQuantizeLSTM have in common, those at 1 and 2 in integers


def mark_recurrent(rewriter: Rewriter, layers: Collection[str]) -> None:
    """Marks the LSTMs that compute some layers, while their weights still have their names.

    Args:
        rewriter: Holds the graph as it was exported.
        layers: Qualified names of layers of the exported program.
    """
    for node in rewriter.nodes("LSTM"):
        sources = {name.rpartition(".")[0] for name in _constants(node.inputs[1])}
        if sources & set(layers):
            node.name = f"{node.name}{_MARK}"


def drop_zero_states(rewriter: Rewriter) -> None:
    """Leaves out initial states of zeros, whose sizes would be computed on each call."""
    for node in rewriter.nodes(*_LAYERS):
        for index in _STATES:
            if _is_zero(operand(node, index)):
                node.replace_input_with(index, None)


def _is_zero(value: ir.Value | None) -> bool:
    array = array_of(value)
    if array is not None:
        return not array.any()
    node = producer_of(value, *_ONLY_MOVE)
    return node is not None and _is_zero(node.inputs[0])


def merge_directions(rewriter: Rewriter) -> None:
    """Merges directions and features by a constant shape.

    Torch's translation reads the sizes that stay, steps and batch, from the tensor itself on each
    call; a 0 says the same.
    """
    for node in rewriter.nodes("Reshape"):
        turned = producer_of(node.inputs[0], "Transpose")
        layer = None if turned is None else producer_of(turned.inputs[0], *_LAYERS)
        shape = producer_of(node.inputs[1], "Concat")
        if layer is None or shape is None or len(shape.inputs) != _MERGED_RANK:
            continue
        if all(_is_size(shape.inputs[i], node.inputs[0], i) for i in range(_MERGED_RANK - 1)):
            node.replace_input_with(1, rewriter.constant(np.array([0, 0, -1], np.int64)))


def _is_size(value: ir.Value | None, of: ir.Value | None, dimension: int) -> bool:
    """Whether a value is the size of one dimension of a tensor."""
    part = producer_of(value, "Slice")
    sizes = None if part is None else producer_of(part.inputs[0], "Shape")
    if part is None or sizes is None or sizes.inputs[0] is not of:
        return False
    edges = [array_of(edge) for edge in part.inputs[1:3]]
    return all(
        edge is not None and edge.tolist() == [wanted]
        for edge, wanted in zip(edges, (dimension, dimension + 1), strict=True)
    )


def lower_recurrent(rewriter: Rewriter) -> None:
    """Replaces the marked LSTMs by DynamicQuantizeLSTM.

    Their weights lie on the grid of int8 whose largest number is that of the row. The runtime
    rounds what the matrices are multiplied with: all of an input at once, and the state anew at
    each step.
    """
    for node in rewriter.nodes("LSTM"):
        if (node.name or "").endswith(_MARK):
            _lower(rewriter, node)


def _lower(rewriter: Rewriter, node: ir.Node) -> None:
    matrices = [_assembled(node.inputs[index]) for index in (1, 2)]
    found = [_integers(matrix) for matrix in matrices if matrix is not None]
    if len(found) < len(matrices):
        return
    inputs = [*node.inputs, *[None] * (_GIVEN - len(node.inputs))]
    for index, (values, _) in enumerate(found, start=1):
        inputs[index] = rewriter.constant(values)
    for _, scale in found:
        zero_point = np.zeros(scale.shape, np.int8)
        inputs += [rewriter.constant(scale), rewriter.constant(zero_point)]
    rewriter.substitute(node, _MICROSOFT, "DynamicQuantizeLSTM", inputs, without=("layout",))


def _assembled(value: ir.Value | None) -> Array | None:
    """A matrix that the exporter puts together from the parts of others; None if it is none."""
    array = array_of(value)
    if array is not None or value is None or (node := value.producer()) is None:
        return array
    parts = [_assembled(source) for source in node.inputs]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if node.op_type == "Concat":
        return np.concatenate(known, node.attributes["axis"].as_int())
    if node.op_type == "Unsqueeze":
        return np.expand_dims(known[0], tuple(known[1].ravel().tolist()))
    if node.op_type == "Slice" and len(known) == _WITH_AXES:
        matrix, *edges = known
        (start,), (end,), (axis,) = (edge.ravel().tolist() for edge in edges)
        part: Array = matrix[(slice(None),) * axis + (slice(start, end),)]
        return part
    return None


def _integers(matrix: Array) -> tuple[Array, Array]:
    """A matrix for each direction, transposed as the runtime wants it, and scales of its rows."""
    largest = np.abs(matrix).max(2)
    scale = np.where(largest > 0, largest / _LARGEST, 1).astype(np.float32)
    values = np.round(matrix / scale[:, :, None]).astype(np.int8)
    return values.transpose(0, 2, 1), scale


def _constants(value: ir.Value | None) -> set[str]:
    """The names of the weights that a value is put together from."""
    names: set[str] = set()
    waiting, known = [value], {value}
    while waiting:
        value = waiting.pop()
        producer = None if value is None else value.producer()
        if producer is not None:
            waiting += (found := {*producer.inputs} - known)
            known |= found
        elif value is not None and value.name:
            names.add(value.name)
    return names
