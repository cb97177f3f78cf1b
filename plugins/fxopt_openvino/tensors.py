"""Tensors that torch and OpenVINO share without a copy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import openvino

# What the CPU plugin computes in the precision that it is given. It would take float64 too, but
# compute in float32. Integers of 64 bits it narrows to 32, which sizes and token ids survive.
TAKEN = frozenset(
    {torch.float32, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
)


def to_openvino(tensor: torch.Tensor) -> openvino.Tensor:
    """A tensor of OpenVINO over the memory of ``tensor``, which must be contiguous."""
    import openvino

    return openvino.Tensor(tensor.numpy(), shared_memory=True)


def to_torch_dtype(element: openvino.Type) -> torch.dtype:
    """The dtype that torch has for an element type."""
    return torch.from_numpy(_empty(element)).dtype


def _empty(element: openvino.Type) -> object:
    import numpy as np

    return np.empty(0, dtype=element.to_dtype())
