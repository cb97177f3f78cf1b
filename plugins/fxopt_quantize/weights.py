"""Weights as integers: symmetric, one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# With 255 levels the largest magnitude is as good a range as any; with few, what is rare is better
# cut off.
_ALL = 8
_SHARES = 36  # ranges that are tried, down to a third of the largest magnitude


def largest_integer(bits: int) -> int:
    """127 for 8 bits and not 128, so that negating a weight negates its integer."""
    return (1 << (bits - 1)) - 1


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
        values: int8, in the shape of the weights.
        scale: Broadcasts against ``values``; 1 for channels that are all zero.
    """

    values: torch.Tensor
    scale: torch.Tensor


def quantize_weight(weight: torch.Tensor, axis: int = 0, bits: int = 8) -> QuantizedWeight:
    """Rounds the weights of each channel to evenly spread levels.

    With eight bits they reach to its largest magnitude; with fewer, as far as gives the least
    squared error.

    Args:
        weight: Finite floats with at least two dimensions.
        axis: The dimension of the output channels.
        bits: From 2 to 8, which is 3 to 255 levels.
    """
    limit = largest_integer(bits)
    weight = weight.detach()
    others = [dim for dim in range(weight.dim()) if dim != axis]
    largest = weight.abs().amax(others, keepdim=True)
    scale = largest / limit
    if bits < _ALL:
        scale = scale * _best_share(weight, scale, others, limit)
    # Below the smallest normal number the division is inexact: such a channel counts as dead.
    scale = torch.where(scale < torch.finfo(scale.dtype).tiny, torch.ones_like(scale), scale)
    values = torch.round(weight / scale).clamp_(-limit, limit).to(torch.int8)
    return QuantizedWeight(values, scale)


def _best_share(
    weight: torch.Tensor, scale: torch.Tensor, others: list[int], limit: int
) -> torch.Tensor:
    """How much of the range of each channel is best kept."""
    least = torch.full_like(scale, torch.inf)
    best = torch.ones_like(scale)
    for share in torch.linspace(1, 1 / 3, _SHARES).tolist():
        step = (scale * share).clamp(min=torch.finfo(scale.dtype).tiny)
        rounded = torch.round(weight / step).clamp_(-limit, limit) * step
        error = (rounded - weight).square().sum(others, keepdim=True)
        best = torch.where(error < least, torch.full_like(best, share), best)
        least = torch.minimum(error, least)
    return best
