"""Choices that always fall the same way, as behind attention whose mask is a constant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxopt_onnxruntime.graph import Rewriter, array_of, given, sizes_of

if TYPE_CHECKING:
    import onnx_ir as ir


def drop_choices(rewriter: Rewriter) -> None:
    """Removes a Where whose condition is a constant that always holds."""
    for node in rewriter.nodes("Where"):
        condition, chosen, other = (given(node, index) for index in range(3))
        array = array_of(condition)
        if array is not None and array.all() and all(_fits(v, chosen) for v in (condition, other)):
            rewriter.replace(node.outputs[0], chosen)


def _fits(value: ir.Value, into: ir.Value) -> bool:
    """Whether one value, spread to the shape of the other, leaves that as it is."""
    if value.shape is None or into.shape is None or len(value.shape) > len(into.shape):
        return False
    sizes = sizes_of(into)[len(into.shape) - len(value.shape) :]
    pairs = zip(sizes_of(value), sizes, strict=True)
    return all(one == 1 or (one is not None and one == size) for one, size in pairs)
