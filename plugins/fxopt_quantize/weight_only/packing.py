"""Codes of four bits, two to a byte."""

from __future__ import annotations

import torch

PACKED_BITS = 4


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Rows of bytes: those of up to four bits two by two, the first one in the lower half.

    Args:
        codes: uint8 of shape (rows, groups, size of a group), the size even where they are packed.
        bits: How many a code takes.

    Returns:
        uint8 of shape (rows, bytes).
    """
    flat = codes.flatten(1)
    if bits > PACKED_BITS:
        return flat.contiguous()
    return flat[:, 0::2] | (flat[:, 1::2] << PACKED_BITS)


def unpack(packed: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The codes of bytes that :func:`pack` wrote, of shape (..., groups, size of a group)."""
    if bits <= PACKED_BITS:
        halves = (packed & (1 << PACKED_BITS) - 1, packed >> PACKED_BITS)
        packed = torch.stack(halves, -1).flatten(-2)
    codes: torch.Tensor = packed.unflatten(-1, (-1, group))
    return codes


def unpack_floats(packed: torch.Tensor, dtype: torch.dtype, bits: int, group: int) -> torch.Tensor:
    """The same in floating point, without operations on bits, which few runtimes have."""
    values = packed.to(dtype)
    if bits <= PACKED_BITS:
        upper = torch.floor(values * 2.0**-PACKED_BITS)
        lower = values - upper * 2.0**PACKED_BITS
        values = torch.stack((lower, upper), -1).flatten(-2)
    codes: torch.Tensor = values.unflatten(-1, (-1, group))
    return codes
