"""Int8 without calibration: what linear layers take is rounded on each call, row by row."""

from fxopt_quantize.dynamic.modules import DynamicLinear
from fxopt_quantize.dynamic.quantize_dynamic import QuantizeDynamic

__all__ = ["DynamicLinear", "QuantizeDynamic"]
