"""Leaves that act in training only: dropout, stochastic depth, dropout inside attention."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from fxopt.frontend.keep import in_place, reads_training
from fxopt.frontend.raising.context import Context, bind
from fxopt.frontend.source import module_path
from fxopt.ir import ScaledDotProductAttention, mark_training_only

aten = torch.ops.aten
_DROPOUTS: dict[Any, type[nn.Module]] = {
    aten.dropout.default: nn.Dropout,
    aten.feature_dropout.default: nn.Dropout2d,
    aten.alpha_dropout.default: nn.AlphaDropout,
    aten.feature_alpha_dropout.default: nn.FeatureAlphaDropout,
}


def raise_kept(context: Context, node: Node) -> None:
    """Raises the marker of a kept module to a call of that module, made functional."""
    operand, name = node.args
    assert isinstance(name, str)
    context.replace(node, context.place(name, (name,), lambda: _functional(context, name)), operand)


def _functional(context: Context, name: str) -> nn.Module:
    module = copy.copy(context.model.get_submodule(name))
    if in_place(module):
        module.inplace = False  # type: ignore[assignment]
    mark_training_only(module)
    return module


def raise_dropout(context: Context, node: Node) -> None:
    """Raises a dropout that is off, so that train() turns it on."""
    a = bind(node)
    if a["train"]:
        return
    kind, p = _DROPOUTS[node.target], a["p"]
    leaf = context.place(_inside(node, "dropout"), (node,), lambda: kind(p))
    context.replace(node, leaf, a["input"])


def _inside(node: Node, name: str) -> str:
    path = module_path(node)
    return f"{path}.{name}" if path else name


def raise_attention(context: Context, node: Node) -> None:
    """Gives scaled_dot_product_attention the dropout that its module has in training."""
    a = bind(node)
    p = _attention_dropout(context, node) or _declared_dropout(context, node)
    if not p or a["dropout_p"]:
        return
    settings = {key: a[key] for key in ("is_causal", "scale", "enable_gqa")}
    name = _inside(node, "attention")
    leaf = context.place(name, (node,), lambda: ScaledDotProductAttention(p, **settings))
    context.replace(node, leaf, a["query"], a["key"], a["value"], a["attn_mask"])


def raise_softmax(context: Context, node: Node) -> None:
    """Adds the dropout that nn.MultiheadAttention applies to its weights in training."""
    p = _attention_dropout(context, node)
    if not p:
        return
    leaf = context.place(_inside(node, "dropout"), (node,), lambda: nn.Dropout(p))
    with context.graph.inserting_after(node):
        dropped = context.graph.create_node("call_module", leaf, (node,))
    dropped.meta = dict(node.meta)
    node.replace_all_uses_with(dropped, delete_user_cb=lambda user: user is not dropped)


def _attention_dropout(context: Context, node: Node) -> float:
    owner = context.submodule(module_path(node))
    return owner.dropout if isinstance(owner, nn.MultiheadAttention) else 0.0


def _declared_dropout(context: Context, node: Node) -> float:
    """The dropout that an attention module passes on in training, by the zoos' conventions.

    Such a module reads its training flag, and either keeps a probability or holds a dropout
    module that it never calls, only to read its probability.
    """
    path = module_path(node)
    owner = context.submodule(path)
    if owner is None or not reads_training(owner):
        return 0.0
    held = [getattr(owner, name, None) for name in ("attention_dropout", "dropout", "dropout_p")]
    found = [value for value in held if isinstance(value, float)]
    for name, child in owner.named_children():
        if isinstance(child, nn.Dropout) and f"{path}.{name}" not in context.kept:
            found.append(child.p)
    return found[0] if len(found) == 1 else 0.0
