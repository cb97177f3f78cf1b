"""Normalizations."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from fxopt.errors import CaptureError
from fxopt.frontend.raising.context import Context, bind, is_constant
from fxopt.frontend.source import module_path

_BATCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
_FIELDS = ("weight", "bias", "running_mean", "running_var")


def raise_batch_norm(context: Context, node: Node) -> None:
    """Raises batch_norm where a user's module owns it, so that training keeps its meaning.

    Raises:
        CaptureError: It updates running statistics in eval mode.
    """
    a = bind(node)
    if a["training"] and a["running_mean"] is not None:
        raise CaptureError(
            "a batch norm updates its running statistics in eval mode",
            where=node.meta.get("source"),
            hint="pass training=self.training to F.batch_norm",
        )
    owner = _owner(context, node, a)
    if isinstance(owner, _BatchNorm):
        _raise_norm(context, node, a, _BATCH[node.meta["val"].dim()], owner)


def raise_instance_norm(context: Context, node: Node) -> None:
    """Raises instance_norm where a user's module owns it."""
    a = bind(node)
    owner = _owner(context, node, a)
    if isinstance(owner, _NormBase) and (a["weight"] is not None or a["running_mean"] is not None):
        _raise_norm(context, node, a, _INSTANCE[node.meta["val"].dim()], owner)


def _owner(context: Context, node: Node, a: dict[str, Any]) -> nn.Module | None:
    fetched = [context.fetched(a[f]) is not None or a[f] is None for f in _FIELDS]
    if not all(fetched):
        return None
    return context.submodule(_name(context, node, a))


def _name(context: Context, node: Node, a: dict[str, Any]) -> str:
    fields = {field: a[field] for field in _FIELDS}
    if all(value is None for value in fields.values()):
        return module_path(node)
    return context.owner_name(node, fields)


def _raise_norm(
    context: Context, node: Node, a: dict[str, Any], kind: type[nn.Module], owner: _NormBase
) -> None:
    """Makes the leaf from the call's tensors and the owner's training behaviour."""
    tensors = {field: a[field] for field in _FIELDS}
    name = context.leaf(
        _name(context, node, a),
        kind,
        tensors,
        num_features=owner.num_features,
        eps=a["eps"],
        # in eval mode export writes 0 for the cumulative average that momentum=None means
        momentum=owner.momentum,
        affine=a["weight"] is not None,
        track_running_stats=a["running_mean"] is not None,
    )
    leaf = context.leaves[name]
    if a["running_mean"] is not None:
        leaf._buffers["num_batches_tracked"] = owner.num_batches_tracked
    context.replace(node, name, a["input"])


def raise_group_norm(context: Context, node: Node) -> None:
    """Raises group_norm with a learned scale."""
    a = bind(node)
    weight = context.parameter(a["weight"])
    if weight is None or not context.learned(a["weight"], a["bias"]):
        return
    tensors = {"weight": a["weight"], "bias": a["bias"]}
    leaf = context.leaf(
        context.owner_name(node, tensors),
        nn.GroupNorm,
        tensors,
        num_groups=a["num_groups"],
        num_channels=weight.numel(),
        eps=a["eps"],
    )
    context.replace(node, leaf, a["input"])


def raise_layer_norm(context: Context, node: Node) -> None:
    """Raises layer_norm with a learned scale."""
    a = bind(node)
    if not context.learned(a["weight"], a["bias"]) or not is_constant(a["normalized_shape"]):
        return
    tensors = {"weight": a["weight"], "bias": a["bias"]}
    leaf = context.leaf(
        context.owner_name(node, tensors),
        nn.LayerNorm,
        tensors,
        normalized_shape=tuple(a["normalized_shape"]),
        eps=a["eps"],
        bias=a["bias"] is not None,
    )
    context.replace(node, leaf, a["input"])


def raise_rms_norm(context: Context, node: Node) -> None:
    """Raises rms_norm with a learned scale."""
    a = bind(node)
    if not context.learned(a["weight"], None) or not is_constant(a["normalized_shape"]):
        return
    leaf = context.leaf(
        context.owner_name(node, {"weight": a["weight"]}),
        nn.RMSNorm,
        {"weight": a["weight"]},
        normalized_shape=tuple(a["normalized_shape"]),
        eps=a["eps"],
    )
    context.replace(node, leaf, a["input"])
