"""Int8 without calibration: what layers take is rounded on each call."""

from fxopt_quantize.dynamic.modules import DynamicLinear
from fxopt_quantize.dynamic.quantize_dynamic import QuantizeDynamic
from fxopt_quantize.dynamic.recurrent import DynamicRecurrent

__all__ = ["DynamicLinear", "DynamicRecurrent", "QuantizeDynamic"]
