"""Reference modules: int8 layers that find the range of what they take on each call."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fxopt_quantize.formats import INT8, UINT8, NumberFormat
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


def rounded_whole(x: torch.Tensor) -> torch.Tensor:
    """Rounds a tensor to 256 evenly spaced values from its smallest to its largest one.

    Zero is one of them, so the range reaches to it.

    Args:
        x: Floats.
    """
    if not x.numel():
        return x
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = ((high - low) * (1 / UINT8.highest)).clamp(min=torch.finfo(x.dtype).tiny)
    zero = torch.round(-low / scale)
    return (UINT8.nearest(torch.round(x / scale) + zero) - zero) * scale


class DynamicLinear(QuantLinear):
    """A linear layer with int8 weights that rounds what it takes to int8, row by row."""

    weight_bits = 8

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(rounded_rows(x), self.weight, self.bias)
