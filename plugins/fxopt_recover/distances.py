"""How far values are from what they should be."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def relative_square(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The mean squared error relative to the mean square of what is wanted."""
    return F.mse_loss(output, wanted) / wanted.square().mean().clamp(min=1e-12)
