"""Matrices as small integers, with a scale for each group of neighbours in a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxopt_quantize.formats import unsigned
from fxopt_quantize.halves import storable, wide

_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of the range of a group that are tried


@dataclass(frozen=True)
class GroupedWeight:
    """A matrix as ``(codes - zero_point) * scale``.

    Attributes:
        codes: uint8 below ``2**bits``, of shape (rows, groups, size of a group).
        scale: Of shape (rows, groups, 1), in the dtype of the weights; positive.
        zero_point: uint8, of the shape of ``scale``: the code that stands for zero.
        bits: How many a code takes.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    bits: int

    def values(self) -> torch.Tensor:
        """The matrix, rounded."""
        return dequantized(self.codes, self.scale, self.zero_point).flatten(1)


def dequantized(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor:
    """What codes stand for, in the dtype and shape that all three broadcast to."""
    return (codes.to(scale.dtype) - zero_point.to(scale.dtype)) * scale


def quantize_groups(
    weight: torch.Tensor, bits: int, group: int, symmetric: bool = False
) -> GroupedWeight:
    """Rounds each group of a row to evenly spread levels, one of which is zero.

    Of some ranges, from all that the group spans downwards, each gets the one with the least
    squared error.

    Args:
        weight: Finite floats of shape (rows, columns).
        bits: From 2 to 8.
        group: How many neighbours share a scale; divides the columns.
        symmetric: Whether zero is the middle one of the levels.
    """
    dtype = weight.dtype
    rows = wide(weight.detach()).unflatten(1, (-1, group))
    least = torch.full_like(rows[..., :1], torch.inf)
    best: tuple[torch.Tensor, ...] = ()
    for share in _SHARES:
        found = _rounded(rows, share, bits, symmetric, dtype)
        error = (dequantized(*found) - rows).square().sum(-1, keepdim=True)
        better = error < least
        best = found if not best else _chosen(better, found, best)
        least = torch.where(better, error, least)
    codes, scale, zero_point = best
    return GroupedWeight(codes, scale.to(dtype), zero_point, bits)


def _rounded(
    rows: torch.Tensor, share: float, bits: int, symmetric: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales to be stored in a dtype, and zero points, for a share of each group's range."""
    number, middle = unsigned(bits), 1 << (bits - 1)
    top = number.highest
    if symmetric:
        largest = rows.abs().amax(-1, keepdim=True) * share
        scale = storable(largest / (middle - 1), dtype)
        zero = torch.full_like(scale, middle)
    else:
        low = rows.amin(-1, keepdim=True).clamp(max=0) * share
        high = rows.amax(-1, keepdim=True).clamp(min=0) * share
        scale = storable((high - low) / top, dtype)
        zero = torch.round(-low / scale).clamp_(0, top)
    codes = number.nearest(torch.round(rows / scale) + zero)
    return codes.to(number.storage), scale, zero.to(number.storage)


def _chosen(
    better: torch.Tensor, found: tuple[torch.Tensor, ...], best: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    return tuple(torch.where(better, new, old) for new, old in zip(found, best, strict=True))
