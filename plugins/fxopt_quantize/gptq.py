"""GPTQ: rounds weights one input after the other; those still to come make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(2023), algorithm 1: by columns in order, with the Cholesky factor of the inverse Hessian, a
dampening of 1 %, and updates gathered over blocks of columns.
"""

from __future__ import annotations

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
    rest, scale = weight.to(torch.float64, copy=True), scale.double()
    factor = _inverse_factor(moments.double())
    values = torch.empty_like(rest)
    for start in range(0, rest.shape[2], _BLOCK):
        block = slice(start, min(start + _BLOCK, rest.shape[2]))
        errors = torch.empty_like(rest[:, :, block])
        for column in range(block.start, block.stop):
            value = torch.round(rest[:, :, column, None] / scale).clamp_(-limit, limit)
            values[:, :, column] = value[:, :, 0]
            left = rest[:, :, column, None] - value * scale
            error = left / factor[:, column, column, None, None]
            rest[:, :, column : block.stop] -= error * factor[:, None, column, column : block.stop]
            errors[:, :, column - start] = error[:, :, 0]
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
