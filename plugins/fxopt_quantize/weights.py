"""Weights in int8: symmetric, one scale per output channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# 127 and not 128, so that the grid is symmetric: negating a weight negates its integer.
LIMIT = 127


@dataclass(frozen=True)
class QuantizedWeight:
    """Weights and their scales.

    Attributes:
        values: int8, in the shape of the weights.
        scale: Broadcasts against ``values``; 1 for channels that are all zero.
    """

    values: torch.Tensor
    scale: torch.Tensor


def quantize_weight(weight: torch.Tensor, axis: int = 0) -> QuantizedWeight:
    """Rounds weights to 255 levels per channel, spread over the channel's largest magnitude.

    Args:
        weight: Finite floats with at least two dimensions.
        axis: The dimension of the output channels.
    """
    weight = weight.detach()
    others = [dim for dim in range(weight.dim()) if dim != axis]
    largest = weight.abs().amax(others, keepdim=True)
    scale = largest / LIMIT
    # Below the smallest normal number the division is inexact: such a channel counts as dead.
    scale = torch.where(scale < torch.finfo(scale.dtype).tiny, torch.ones_like(scale), scale)
    values = torch.round(weight / scale).clamp_(-LIMIT, LIMIT).to(torch.int8)
    return QuantizedWeight(values, scale)
