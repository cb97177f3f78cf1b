"""Attention in ONNX, in a form that the runtime fuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def attention_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """What replaces torch's own translation of ``scaled_dot_product_attention``.

    Torch's computes sizes at run time to transpose the keys. Here they are only transposed, so
    that they can be moved as integers. Both products stay in float: between activations the
    runtime's integer kernels are no faster, and the weights of long sequences are too small for
    the 256 values that they would be rounded to.
    """
    import torch

    return {torch.ops.aten.scaled_dot_product_attention.default: _attention}


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    from onnxscript import opset20 as op
    from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention

    width = query.shape[-1] if query.shape is not None else None
    if is_causal or enable_gqa or not isinstance(width, int):
        return aten_scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa
        )
    factor = 1 / math.sqrt(width) if scale is None else scale
    rank = len(key.shape)
    flipped = op.Transpose(key, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = op.MatMul(op.Mul(query, op.Constant(value_float=factor)), flipped)
    if attn_mask is not None:
        scores = op.Add(scores, _as_summand(attn_mask))
    result = op.MatMul(op.Softmax(scores, axis=-1), value)
    if attn_mask is None:
        return result
    # the softmax of a query without keys is no number, and torch yields zeros for it
    return op.Where(_leaves_keys(attn_mask), result, op.Constant(value_float=0.0))


def _leaves_keys(mask: Any) -> Any:
    """For each query, whether a mask lets it see any key."""
    from onnxscript import opset20 as op

    last: Any = op.Constant(value_ints=[-1])
    largest = op.ReduceMax(_as_summand(mask), last, keepdims=1)
    return op.Greater(largest, op.Constant(value_float=-math.inf))


def _as_summand(mask: Any) -> Any:
    """A mask that is added to the scores: minus infinity where a boolean one says no."""
    import onnx_ir as ir
    from onnxscript import opset20 as op

    if mask.dtype != ir.DataType.BOOL:
        return mask
    choices: tuple[Any, Any] = (
        op.Constant(value_float=0.0),
        op.Constant(value_float=-math.inf),
    )
    return op.Where(mask, *choices)
