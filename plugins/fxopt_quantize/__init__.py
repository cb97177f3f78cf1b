"""Quantization as reference modules: int8, static and dynamic, few-bit weights, small floats."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.plugin import Pass, hookimpl
from fxopt_quantize.dynamic import DynamicLinear, DynamicRecurrent, QuantizeDynamic
from fxopt_quantize.floats import QuantizeFloats, RoundFloatRows, RoundFloats
from fxopt_quantize.modules import (
    FakeQuantize,
    FakeQuantizePerChannel,
    QuantConv,
    QuantConvTranspose,
    QuantLinear,
)
from fxopt_quantize.quantize import Quantize
from fxopt_quantize.weight_only import (
    QuantizeWeights,
    WeightOnlyEmbedding,
    WeightOnlyLinear,
    WeightOnlyRecurrent,
)

__all__ = [
    "DynamicLinear",
    "DynamicRecurrent",
    "FakeQuantize",
    "FakeQuantizePerChannel",
    "QuantConv",
    "QuantConvTranspose",
    "QuantLinear",
    "Quantize",
    "QuantizeDynamic",
    "QuantizeFloats",
    "QuantizeWeights",
    "RoundFloatRows",
    "RoundFloats",
    "WeightOnlyEmbedding",
    "WeightOnlyLinear",
    "WeightOnlyRecurrent",
    "fxopt_passes",
]


@hookimpl
def fxopt_passes() -> Sequence[type[Pass]]:
    """The passes of this plugin."""
    return [Quantize, QuantizeDynamic, QuantizeFloats, QuantizeWeights]
