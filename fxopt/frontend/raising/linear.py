"""Linear maps, embeddings and PReLU."""

from __future__ import annotations

import operator

from torch import nn
from torch.fx import Node

from fxopt.frontend.raising.context import Context, bind, is_constant

_BAG_MODES = ("sum", "mean", "max")


def raise_linear(context: Context, node: Node) -> None:
    """Raises linear."""
    a = bind(node)
    weight = context.parameter(a["weight"])
    if weight is None or not context.learned(a["weight"], a["bias"]) or weight.dim() != 2:
        return
    tensors = {"weight": a["weight"], "bias": a["bias"]}
    leaf = context.leaf(
        context.owner_name(node, tensors),
        nn.Linear,
        tensors,
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        bias=a["bias"] is not None,
    )
    context.replace(node, leaf, a["input"])


def raise_bilinear(context: Context, node: Node) -> None:
    """Raises bilinear."""
    a = bind(node)
    weight = context.parameter(a["weight"])
    if weight is None or not context.learned(a["weight"], a["bias"]):
        return
    tensors = {"weight": a["weight"], "bias": a["bias"]}
    leaf = context.leaf(
        context.owner_name(node, tensors),
        nn.Bilinear,
        tensors,
        in1_features=weight.shape[1],
        in2_features=weight.shape[2],
        out_features=weight.shape[0],
        bias=a["bias"] is not None,
    )
    context.replace(node, leaf, a["input1"], a["input2"])


def raise_embedding(context: Context, node: Node) -> None:
    """Raises embedding."""
    a = bind(node)
    weight = context.parameter(a["weight"])
    if weight is None or not is_constant(a["padding_idx"]):
        return
    leaf = context.leaf(
        context.owner_name(node, {"weight": a["weight"]}),
        nn.Embedding,
        {"weight": a["weight"]},
        num_embeddings=weight.shape[0],
        embedding_dim=weight.shape[1],
        padding_idx=None if a["padding_idx"] < 0 else a["padding_idx"],
        scale_grad_by_freq=a["scale_grad_by_freq"],
        sparse=a["sparse"],
    )
    context.replace(node, leaf, a["indices"])


def raise_embedding_bag(context: Context, node: Node) -> None:
    """Raises embedding_bag, unless more than its first result is used."""
    a = bind(node)
    weight = context.parameter(a["weight"])
    users = list(node.users)
    first_only = all(u.target is operator.getitem and u.args[1] == 0 for u in users)
    if weight is None or not first_only:
        return
    leaf = context.leaf(
        context.owner_name(node, {"weight": a["weight"]}),
        nn.EmbeddingBag,
        {"weight": a["weight"]},
        num_embeddings=weight.shape[0],
        embedding_dim=weight.shape[1],
        mode=_BAG_MODES[a["mode"]],
        scale_grad_by_freq=a["scale_grad_by_freq"],
        sparse=a["sparse"],
        include_last_offset=a["include_last_offset"],
        padding_idx=a["padding_idx"],
    )
    bags = context.call(node, leaf, a["indices"], a["offsets"], a["per_sample_weights"])
    bags.meta["val"] = node.meta["val"][0]
    for user in users:
        user.replace_all_uses_with(bags)
        context.graph.erase_node(user)
    context.graph.erase_node(node)


def raise_prelu(context: Context, node: Node) -> None:
    """Raises prelu."""
    a = bind(node)
    weight = context.parameter(a["weight"])
    if weight is None or weight.dim() != 1:
        return
    name = context.owner_name(node, {"weight": a["weight"]})
    tensors = {"weight": a["weight"]}
    leaf = context.leaf(name, nn.PReLU, tensors, num_parameters=weight.numel())
    context.replace(node, leaf, a["self"])
