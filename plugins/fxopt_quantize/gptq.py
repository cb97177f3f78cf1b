"""GPTQ: rounds weights one input after the other; those still to come make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(2023), algorithm 1: by columns in order, with the Cholesky factor of the inverse Hessian, a
dampening of 1 %, and updates gathered over blocks of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_DAMPENING = 0.01
_BLOCK = 128


def gptq(
    weight: torch.Tensor, scale: torch.Tensor, moments: torch.Tensor, limit: int
) -> torch.Tensor:
    """Integers such that what outputs err by is small.

    Args:
        weight: As (groups, outputs, inputs).
        scale: Distance between the values of each output, as (groups, outputs, 1).
        moments: The mean of x x' over inputs x, as (groups, inputs, inputs).
        limit: The largest integer, and the smallest one's magnitude.

    Returns:
        Whole numbers in the shape of ``weight``.
    """
    largest = torch.full_like(scale, limit)
    return compensated(weight, Levels(scale, -largest, largest), moments)


@dataclass(frozen=True)
class Levels:
    """What weights may become: whole multiples of a scale, between bounds.

    Attributes:
        scale: Distance between neighbours; positive. All three broadcast against the weights.
        low: The smallest integer.
        high: The largest integer.
    """

    scale: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def expanded(self, shape: torch.Size) -> Levels:
        """The same in float64, one for each weight."""
        grids = (self.scale, self.low, self.high)
        return Levels(*(each.double().expand(shape) for each in grids))


def compensated(weight: torch.Tensor, levels: Levels, moments: torch.Tensor) -> torch.Tensor:
    """Integers such that what outputs err by is small, on levels that differ from weight to weight.

    Args:
        weight: As (groups, outputs, inputs).
        levels: Chosen beforehand, and kept.
        moments: The mean of x x' over inputs x, as (groups, inputs, inputs).

    Returns:
        Whole numbers in the shape of ``weight``.
    """
    rest = weight.to(torch.float64, copy=True)
    levels = levels.expanded(rest.shape)
    factor = _inverse_factor(moments.double())
    values = torch.empty_like(rest)
    for start in range(0, rest.shape[2], _BLOCK):
        block = slice(start, min(start + _BLOCK, rest.shape[2]))
        errors = torch.empty_like(rest[:, :, block])
        for column in range(block.start, block.stop):
            scale = levels.scale[:, :, column]
            value = torch.round(rest[:, :, column] / scale)
            value = value.clamp(levels.low[:, :, column], levels.high[:, :, column])
            values[:, :, column] = value
            error = (rest[:, :, column] - value * scale) / factor[:, column, column, None]
            to_come = factor[:, None, column, column : block.stop]
            rest[:, :, column : block.stop] -= error[:, :, None] * to_come
            errors[:, :, column - start] = error
        rest[:, :, block.stop :] -= errors @ factor[:, block, block.stop :]
    return values


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the inverse; inputs that are always zero stay on their own."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    added = _DAMPENING * mean + (diagonal == 0) * torch.where(mean > 0, mean, 1.0)
    lower = torch.linalg.cholesky(hessian + torch.diag_embed(added))
    upper: torch.Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower)).transpose(1, 2)
    return upper
