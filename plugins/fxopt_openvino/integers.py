"""Arithmetic on integers that OpenVINO does in another way than torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

# The runtime divides in float32, which is exact to 24 bits, and cuts off what torch rounds down.
_DIVISIONS = {
    aten.floor_divide.default, aten.floor_divide.Scalar, aten.div.Tensor_mode,
    aten.div.Scalar_mode, aten.remainder.Tensor, aten.remainder.Scalar, aten.fmod.Tensor,
    aten.fmod.Scalar,
}  # fmt: skip

# What is too large for a narrow type wraps around in torch; the runtime stops at its end.
_ARITHMETIC = {
    aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Tensor,
    aten.rsub.Scalar, aten.mul.Tensor, aten.mul.Scalar, aten.neg.default, aten.abs.default,
    aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar,
}  # fmt: skip
_NARROW = {torch.int8, torch.uint8, torch.int16}

# Numbers that are larger do not fit what it takes for 64 bits.
_WIDEST = torch.iinfo(torch.int32)


def differs(node: fx.Node) -> str | None:
    """Why the runtime may yield other integers than torch; None where it does not.

    Args:
        node: Any node.
    """
    value: Any = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.is_floating_point():
        return None
    if node.target in _DIVISIONS:
        return "divides integers, which OpenVINO does in float32"
    if node.target in _ARITHMETIC and value.dtype in _NARROW:
        kind = str(value.dtype).removeprefix("torch.")
        return f"computes in {kind}, which does not wrap around in OpenVINO"
    if any(isinstance(arg, int) and not _fits(arg) for arg in node.args):
        return "takes an integer beyond 32 bits, to which OpenVINO narrows them"
    return None


def _fits(number: int) -> bool:
    # the largest one of 64 bits is how slices say "up to the end"
    return _WIDEST.min <= number <= _WIDEST.max or number == torch.iinfo(torch.int64).max
