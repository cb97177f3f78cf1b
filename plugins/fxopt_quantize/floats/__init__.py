"""Floats of eight or sixteen bits, for weights alone or for what layers take as well."""

from fxopt_quantize.floats.modules import RoundFloatRows, RoundFloats
from fxopt_quantize.floats.quantize_floats import QuantizeFloats

__all__ = ["QuantizeFloats", "RoundFloatRows", "RoundFloats"]
