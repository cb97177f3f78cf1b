"""Attention that drops weights in training becomes the plain operator that inference needs."""

from __future__ import annotations

from collections import Counter

import torch

from fxopt.plugin import Edit, Program, ScaledDotProductAttention

_OPERATOR = torch.ops.aten.scaled_dot_product_attention.default


def use_operator(program: Program, edit: Edit) -> Counter[str]:
    """Replaces each attention module by the operator, which patterns and backends know."""
    counts: Counter[str] = Counter()
    for node in program.find(ScaledDotProductAttention):
        if edit.exhausted:
            break
        leaf = program.leaf(node)
        assert isinstance(leaf, ScaledDotProductAttention)
        inputs = (*node.args, *node.kwargs.values())
        mask = inputs[3] if len(inputs) > 3 else None
        edit.replace(
            node,
            _OPERATOR,
            *inputs[:3],
            mask,
            0.0,
            leaf.is_causal,
            scale=leaf.scale,
            enable_gqa=leaf.enable_gqa,
        )
        counts["attention"] += 1
    return counts
