"""Reference modules: int8 layers that find the range of what they take on each call."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fxopt_quantize.formats import INT8, NumberFormat
from fxopt_quantize.modules import QuantLinear


def rounded_rows(x: torch.Tensor, number: NumberFormat = INT8) -> torch.Tensor:
    """Rounds each row, a vector along the last dimension, to numbers in units of its own scale.

    The largest magnitude of a row becomes the largest number. Backends recognise the chain of
    operations for int8.

    Args:
        x: Floats.
        number: Symmetric about zero.
    """
    largest = x.abs().amax(-1, keepdim=True)
    scale = (largest * (1 / number.highest)).clamp(min=torch.finfo(x.dtype).tiny)
    return number.nearest(x / scale) * scale


class DynamicLinear(QuantLinear):
    """A linear layer with int8 weights that rounds what it takes to int8, row by row."""

    weight_bits = 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(rounded_rows(x), self.weight, self.bias)
