"""Weights as layers hold them, shared where the layers' weights were."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fxopt_quantize.gptq import Levels, compensated
from fxopt_quantize.weight_only.grouped import GroupedWeight, quantize_groups
from fxopt_quantize.weight_only.packing import pack


@dataclass(frozen=True)
class StoredWeight:
    """A matrix in few bits.

    Attributes:
        packed: uint8 of shape (rows, bytes).
        scale: Of shape (rows, groups, 1).
        zero_point: uint8 of the shape of ``scale``.
        bits: How many a weight takes.
        group: How many share a scale.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor
    bits: int
    group: int


class Store:
    """Makes stored weights; a tensor that two layers have in common is stored once.

    Args:
        bits: From 2 to 8.
        group: As of :func:`quantize_groups`; 0 for one group a row.
        symmetric: As of :func:`quantize_groups`.
    """

    def __init__(self, bits: int, group: int, symmetric: bool) -> None:
        self._bits = bits
        self._group = group
        self._symmetric = symmetric
        self._made: dict[torch.Tensor, StoredWeight] = {}  # tensors are hashed by identity

    def stored(self, weight: torch.Tensor, moments: torch.Tensor | None = None) -> StoredWeight:
        """The counterpart of a matrix; rows that do not divide into groups are one each.

        Args:
            weight: The matrix.
            moments: Of its inputs, where it is rounded by what that does to outputs; they count
                the first time.
        """
        if weight not in self._made:
            columns = weight.shape[1]
            group = self._group if self._group and columns % self._group == 0 else columns
            found = quantize_groups(weight, self._bits, group, self._symmetric)
            if moments is not None:
                found = _compensated(weight, found, moments)
            packed = pack(found.codes, self._bits)
            self._made[weight] = StoredWeight(
                packed, found.scale, found.zero_point, self._bits, group
            )
        return self._made[weight]


def _compensated(
    weight: torch.Tensor, nearest: GroupedWeight, moments: torch.Tensor
) -> GroupedWeight:
    """Other codes on the same levels, by GPTQ."""
    zero = nearest.zero_point.to(torch.float64)
    top = (1 << nearest.bits) - 1
    grids = (nearest.scale, -zero, top - zero)
    each = (grid.expand(nearest.codes.shape).flatten(1)[None] for grid in grids)
    integers = compensated(weight.detach()[None], Levels(*each), moments[None])[0]
    codes = integers.reshape(nearest.codes.shape) + zero
    return replace(nearest, codes=codes.to(torch.uint8))
