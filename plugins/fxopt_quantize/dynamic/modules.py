"""Reference modules: int8 layers that find the range of what they take on each call."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fxopt_quantize.modules import QuantLinear

LIMIT = 127
"""The largest integer of an activation, and the smallest one's magnitude."""


def rounded_rows(x: torch.Tensor) -> torch.Tensor:
    """Rounds each row, a vector along the last dimension, to 255 evenly spaced values.

    The largest magnitude of a row is one of them, and so is zero. Backends recognise the chain of
    operations.

    Args:
        x: Floats.
    """
    largest = x.abs().amax(-1, keepdim=True)
    scale = (largest * (1 / LIMIT)).clamp(min=torch.finfo(x.dtype).tiny)
    return torch.round(x / scale).clamp(-LIMIT, LIMIT) * scale


class DynamicLinear(QuantLinear):
    """A linear layer with int8 weights that rounds what it takes to int8, row by row."""

    weight_bits = 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(rounded_rows(x), self.weight, self.bias)
