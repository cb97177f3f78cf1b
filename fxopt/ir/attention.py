"""Attention with dropout in training: the one leaf module that capture itself brings."""

from __future__ import annotations

import torch
from torch import Tensor

from fxopt.ir.leaf import LeafModule


class ScaledDotProductAttention(LeafModule):
    """Scaled dot-product attention whose dropout follows the training flag.

    Args:
        dropout: Probability with which an attention weight is dropped in training.
        is_causal: As of `torch.nn.functional.scaled_dot_product_attention`.
        scale: Likewise.
        enable_gqa: Likewise.
    """

    def __init__(
        self,
        dropout: float,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.is_causal = is_causal
        self.scale = scale
        self.enable_gqa = enable_gqa

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Attends: query, key and value are (..., heads, tokens, features)."""
        return torch.ops.aten.scaled_dot_product_attention.default(  # type: ignore[no-any-return]
            query,
            key,
            value,
            attn_mask,
            self.dropout if self.training else 0.0,
            self.is_causal,
            scale=self.scale,
            enable_gqa=self.enable_gqa,
        )

    def extra_repr(self) -> str:
        """The settings, for print()."""
        return f"dropout={self.dropout}, is_causal={self.is_causal}"
