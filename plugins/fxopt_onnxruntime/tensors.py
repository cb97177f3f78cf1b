"""The dtypes that torch and ONNX Runtime both have kernels for."""

from __future__ import annotations

import numpy as np
import torch

# float64 is left out: the translation of some operators computes constants in float32.
_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}

TAKEN = frozenset(_NUMPY)
"""What tensors of a program may hold."""


def to_numpy_dtype(dtype: torch.dtype) -> type[np.generic]:
    """The scalar type of numpy by which ONNX Runtime's Python interface names a dtype."""
    return _NUMPY[dtype]
