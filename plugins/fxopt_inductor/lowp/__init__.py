"""Low precision with torch alone: int8 on oneDNN's operators, bfloat16 where it is asked for."""

from fxopt_inductor.lowp.form import Form
from fxopt_inductor.lowp.operators import missing_operators
from fxopt_inductor.lowp.rewrite import heavy_kernels, is_quantized, rewrite

__all__ = ["Form", "heavy_kernels", "is_quantized", "missing_operators", "rewrite"]
