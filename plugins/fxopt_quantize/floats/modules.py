"""Reference modules: activations as floats of few bits, computed with in the dtype they had."""

from __future__ import annotations

import torch

from fxopt.plugin import LeafModule
from fxopt_quantize.dynamic.modules import rounded_rows
from fxopt_quantize.formats import FLOATS, Float


class RoundFloats(LeafModule):
    """Rounds a tensor to floats of few bits, in units of one scale.

    Args:
        number: Name of the format.
        scale: Positive.
    """

    def __init__(self, number: Float, scale: float) -> None:
        super().__init__()
        self.number = number
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        number = FLOATS[self.number]
        return number.nearest(x / self.scale) * self.scale if number.scaled else number.nearest(x)

    def extra_repr(self) -> str:
        return f"{self.number}, scale={self.scale:.6g}"


class RoundFloatRows(LeafModule):
    """Rounds each row of a tensor to floats of few bits, in units of a scale of its own.

    Args:
        number: Name of the format.
    """

    def __init__(self, number: Float) -> None:
        super().__init__()
        self.number = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return rounded_rows(x, FLOATS[self.number])

    def extra_repr(self) -> str:
        return self.number
