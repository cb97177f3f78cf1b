"""Static int8 quantization: calibrated activations, per-channel weights, as reference modules."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.plugin import Pass, hookimpl
from fxopt_quantize.modules import (
    FakeQuantize,
    FakeQuantizePerChannel,
    QuantConv,
    QuantConvTranspose,
    QuantLinear,
)
from fxopt_quantize.quantize import Quantize

__all__ = [
    "FakeQuantize",
    "FakeQuantizePerChannel",
    "QuantConv",
    "QuantConvTranspose",
    "QuantLinear",
    "Quantize",
    "fxopt_passes",
]


@hookimpl
def fxopt_passes() -> Sequence[type[Pass]]:
    """The one pass of this plugin."""
    return [Quantize]
