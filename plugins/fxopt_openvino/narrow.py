"""Weights of four bits: constants that a program has as bytes, in the type that has kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from fxopt.plugin import paged

if TYPE_CHECKING:
    import openvino

_LEVELS = 16


def narrow(model: openvino.Model) -> list[torch.Tensor]:
    """Turns constants of bytes below 16 that are only converted to float into four-bit ones.

    Args:
        model: It is changed.

    Returns:
        The memory that the constants lie in, two values a byte, the first one in the lower half.
        It must live as long as the model, and may be given back.
    """
    memory: list[torch.Tensor] = []
    for operation in model.get_ops():
        if _is_narrow(operation):
            memory.append(_packed(operation.data))
            narrowed = _four_bits(memory[-1], list(operation.data.shape)).output(0)
            for taker in operation.output(0).get_target_inputs():
                taker.replace_source_output(narrowed)
    return memory


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


def _packed(values: np.ndarray) -> torch.Tensor:
    flat = values.reshape(-1)
    return paged(torch.from_numpy(flat[0::2] | (flat[1::2] << 4)))


def _four_bits(memory: torch.Tensor, shape: list[int]) -> openvino.Node:
    import openvino
    from openvino import op

    tensor = openvino.Tensor(memory.numpy(), openvino.Shape(shape), openvino.Type.u4)
    return op.Constant(tensor, shared_memory=True)
