"""Tensors in files without a name: memory that the system can take back and read again."""

from __future__ import annotations

import sys
import tempfile

import torch

_LEAST = 1 << 16
"""Bytes below which a tensor is not worth a file."""


def paged(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that lies in a file of its own, which nobody else can reach.

    It begins at the start of a page. What is written to it is kept in memory; the file stays as it
    is. Where there is no room for a file, or no such files (on systems other than Linux), it is
    an ordinary copy, as that of a small tensor is.

    Args:
        tensor: On the CPU.
    """
    if not sys.platform.startswith("linux") or tensor.nbytes < _LEAST:
        return tensor.clone()
    try:
        with tempfile.NamedTemporaryFile(prefix="fxopt-") as file:
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            copy = torch.from_file(file.name, size=tensor.numel(), dtype=tensor.dtype)
    except (OSError, RuntimeError):  # no room, or it cannot be mapped
        return tensor.clone()
    return copy.reshape(tensor.shape)
