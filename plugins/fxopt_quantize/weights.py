"""Weights in few bits: symmetric, one scale per output channel or one for all."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxopt_quantize.formats import INT8, NumberFormat
from fxopt_quantize.halves import storable, wide

# With 255 levels the largest magnitude is as good a range as any; with few, what is rare is better
# cut off.
_ALL = 8
_SHARES = 36  # ranges that are tried, down to a third of the largest magnitude


def weight_refusal(weight: torch.Tensor) -> str | None:
    """Why weights cannot be rounded; None when they can."""
    if not weight.is_floating_point() or weight.numel() == 0:
        return f"its weights are {str(weight.dtype).removeprefix('torch.')}{list(weight.shape)}"
    if not bool(torch.isfinite(weight).all()):
        return "its weights are not finite"
    return None


@dataclass(frozen=True)
class QuantizedWeight:
    """Weights and their scales.

    Attributes:
        values: As its format stores them, in the shape of the weights.
        scale: Broadcasts against ``values``, in the dtype of the weights; 1 for channels that are
            all zero.
    """

    values: torch.Tensor
    scale: torch.Tensor


def quantize_weight(
    weight: torch.Tensor, axis: int | None = 0, number: NumberFormat = INT8
) -> QuantizedWeight:
    """Rounds the weights of each channel to numbers of a format, in units of a scale.

    With eight bits they reach to its largest magnitude; with fewer, as far as gives the least
    squared error.

    Args:
        weight: Finite floats with at least two dimensions.
        axis: The dimension of the output channels; None for one scale for all of them.
        number: Symmetric about zero; where it needs no scale, all scales are 1.
    """
    dtype, weight = weight.dtype, wide(weight.detach())
    others = [dim for dim in range(weight.dim()) if dim != axis]
    scale = weight.abs().amax(others, keepdim=True) / number.highest
    if number.bits < _ALL:
        scale = scale * _best_share(weight, scale, others, number)
    scale = storable(scale, dtype) if number.scaled else torch.ones_like(scale)
    values = number.nearest(weight / scale).to(number.storage)
    return QuantizedWeight(values, scale.to(dtype))


def _best_share(
    weight: torch.Tensor, scale: torch.Tensor, others: list[int], number: NumberFormat
) -> torch.Tensor:
    """How much of the range of each channel is best kept."""
    least = torch.full_like(scale, torch.inf)
    best = torch.ones_like(scale)
    for share in torch.linspace(1, 1 / 3, _SHARES).tolist():
        step = (scale * share).clamp(min=torch.finfo(scale.dtype).tiny)
        rounded = number.nearest(weight / step) * step
        error = (rounded - weight).square().sum(others, keepdim=True)
        best = torch.where(error < least, torch.full_like(best, share), best)
        least = torch.minimum(error, least)
    return best
