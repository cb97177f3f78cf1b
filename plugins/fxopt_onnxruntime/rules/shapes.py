"""Sizes that need not be computed on each call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import Rewriter, array_of, given, producer_of

if TYPE_CHECKING:
    import onnx_ir as ir


def merge_by_constants(rewriter: Rewriter) -> None:
    """Writes a Reshape that only merges the last dimensions with a constant.

    Torch's translation reads the sizes that stay from the tensor itself; a 0 says the same.
    """
    for node in rewriter.nodes("Reshape"):
        shape = producer_of(node.inputs[1], "Concat")
        literally = node.attributes.get("allowzero")
        if shape is None or (literally is not None and literally.as_int()):
            continue
        kept = len(shape.inputs) - 1
        own = (_is_size(shape.inputs[i], given(node), i) for i in range(kept))
        if kept and all(own):
            merged = np.array([0] * kept + [-1], np.int64)
            node.replace_input_with(1, rewriter.constant(merged))


def _is_size(value: ir.Value | None, of: ir.Value, dimension: int) -> bool:
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
