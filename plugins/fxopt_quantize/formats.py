"""What a stored number can be, apart from how numbers are packed into bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from fxopt.plugin import Target


@dataclass(frozen=True)
class NumberFormat:
    """The numbers that a value may take, in units of its scale.

    Attributes:
        name: Such as ``int8`` or ``fp8_e4m3``.
        bits: How many a number takes.
        storage: What torch holds one in; fewer than eight bits take a byte unless they are packed.
        lowest: The smallest number in use.
        highest: The largest number in use.
        whole: Whether these are whole numbers.
        scaled: Whether values need a scale to fit; floats of 16 bits hold what networks compute.
    """

    name: str
    bits: int
    storage: torch.dtype
    lowest: float
    highest: float
    whole: bool = True
    scaled: bool = True

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest numbers to some floats, of two equally near ones the even, in their dtype.

        What is beyond all numbers becomes the last one; without a scale infinity, as in kernels.
        """
        if self.whole:
            return torch.round(x).clamp(self.lowest, self.highest)
        if not self.scaled:
            return x.to(self.storage).to(x.dtype)
        return x.clamp(self.lowest, self.highest).to(self.storage).to(x.dtype)


def signed(bits: int) -> NumberFormat:
    """Whole numbers about zero: 127 on either side for 8 bits, so that negating stays exact."""
    highest = (1 << (bits - 1)) - 1
    return NumberFormat(f"int{bits}", bits, torch.int8, -highest, highest)


def safe(target: Target) -> NumberFormat:
    """The finest weights that kernels multiply bytes with exactly."""
    return signed(7) if target.saturates else INT8


def unsigned(bits: int) -> NumberFormat:
    """Whole numbers from zero, of which one may stand for zero."""
    return NumberFormat(f"uint{bits}", bits, torch.uint8, 0, (1 << bits) - 1)


def _floats(name: str, storage: torch.dtype, scaled: bool) -> NumberFormat:
    info = torch.finfo(storage)
    return NumberFormat(name, info.bits, storage, info.min, info.max, whole=False, scaled=scaled)


INT8, UINT8 = signed(8), unsigned(8)

Float = Literal["fp8_e4m3", "fp8_e5m2", "fp16", "bf16"]
FLOATS: dict[str, NumberFormat] = {
    "fp8_e4m3": _floats("fp8_e4m3", torch.float8_e4m3fn, scaled=True),
    "fp8_e5m2": _floats("fp8_e5m2", torch.float8_e5m2, scaled=True),
    "fp16": _floats("fp16", torch.float16, scaled=False),
    "bf16": _floats("bf16", torch.bfloat16, scaled=False),
}
"""Floats of few bits, by name; those of eight as Micikevicius et al., "FP8 Formats for Deep
Learning", 2022, have them."""
