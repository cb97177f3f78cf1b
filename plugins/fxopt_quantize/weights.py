"""Weights as integers: symmetric, one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def largest_integer(bits: int) -> int:
    """127 for 8 bits and not 128, so that negating a weight negates its integer."""
    return (1 << (bits - 1)) - 1


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
    """Rounds the weights of each channel to levels spread over its largest magnitude.

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
    # Below the smallest normal number the division is inexact: such a channel counts as dead.
    scale = torch.where(scale < torch.finfo(scale.dtype).tiny, torch.ones_like(scale), scale)
    values = torch.round(weight / scale).clamp_(-limit, limit).to(torch.int8)
    return QuantizedWeight(values, scale)
