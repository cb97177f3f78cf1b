"""Weights of four bits: constants that a program has as bytes, in the type that has kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino

_LEVELS = 16


def narrow(model: openvino.Model) -> None:
    """Turns constants of bytes below 16 that are only converted to float into four-bit ones.

    The runtime multiplies with such weights as they lie in memory.

    Args:
        model: It is changed.
    """
    for operation in model.get_ops():
        if _is_narrow(operation):
            narrowed = _four_bits(operation.data).output(0)
            for taker in operation.output(0).get_target_inputs():
                taker.replace_source_output(narrowed)


def _is_narrow(operation: openvino.Node) -> bool:
    import openvino

    if operation.get_type_name() != "Constant":
        return False
    if operation.get_output_element_type(0) != openvino.Type.u8:
        return False
    takers = [taker.get_node() for taker in operation.output(0).get_target_inputs()]
    converted = all(taker.get_type_name() == "Convert" for taker in takers)
    data = operation.data
    return bool(converted and data.size and data.size % 2 == 0 and data.max() < _LEVELS)


def _four_bits(values: np.ndarray) -> openvino.Node:
    """A constant with two values a byte, the first one in the lower half."""
    import openvino
    from openvino import op

    flat = values.reshape(-1)
    tensor = openvino.Tensor(openvino.Type.u4, openvino.Shape(list(values.shape)))
    tensor.data.reshape(-1).view(np.uint8)[:] = flat[0::2] | (flat[1::2] << 4)
    return op.Constant(tensor)
