"""Normalisation: statistics of each channel on its own, of groups, or of all together."""

from __future__ import annotations

import torch
from torch import nn

from fxopt_prune.channels.atoms import Labels
from fxopt_prune.channels.blocks import couple_columns
from fxopt_prune.channels.rules.registry import Changed, Smaller, resize, rule
from fxopt_prune.channels.trace import Call, Dims, module_tensors

aten = torch.ops.aten


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm(call: Call) -> Dims:
    """Channels are along dimension 1."""
    x = call.first()
    return _with_weights(call, x, 1)


@rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(call: Call) -> Dims:
    """The same; an example without a batch has its channels first."""
    x = call.first()
    spatial = int(type(call.leaf).__name__[-2])
    return _with_weights(call, x, len(x) - spatial - 1)


@rule(nn.GroupNorm)
def group_norm(call: Call) -> Dims:
    """All groups lose the same positions, so that they stay equally large."""
    x = call.first()
    couple_columns(call, call.leaf.num_groups, x[1])
    if len(x[1]) > call.leaf.num_groups:
        call.inexact(x[1])
    return _with_weights(call, x, 1)


@rule(nn.LayerNorm, nn.RMSNorm)
def layer_norm(call: Call) -> Dims:
    """The last dimensions are normalised together: what stays changes when others go."""
    x, leaf = call.first(), call.leaf
    for weight in module_tensors(leaf).values():
        for labels, own in zip(x[-weight.dim() :], call.trace.weight(weight), strict=True):
            call.couple(labels, own)
    for labels in x[-len(leaf.normalized_shape) :]:
        call.inexact(labels)
    return x


# --- as functions, which those without weights are, or whose weights are computed -----------


@rule(aten.instance_norm.default, aten.batch_norm.default)
def channel_norm_function(call: Call) -> Dims:
    """Channels are along dimension 1."""
    x = call.first()
    _with_arguments(call, x[1], "weight", "bias", "running_mean", "running_var")
    return x


@rule(aten.group_norm.default)
def group_norm_function(call: Call) -> Dims:
    """All groups lose the same positions."""
    x, groups = call.first(), call.arguments["num_groups"]
    couple_columns(call, groups, x[1])
    if len(x[1]) > groups:
        call.inexact(x[1])
    _with_arguments(call, x[1], "weight", "bias")
    return x


@rule(aten.layer_norm.default, aten.rms_norm.default)
def layer_norm_function(call: Call) -> Dims:
    """The last dimensions are normalised together."""
    x = call.first()
    last = x[-len(call.arguments["normalized_shape"]) :]
    for name in ("weight", "bias"):
        if call.arguments.get(name) is not None:
            for labels, own in zip(last, call.dims(call.arguments[name]), strict=True):
                call.couple(labels, own)
    for labels in last:
        call.inexact(labels)
    return x


@resize(aten.layer_norm.default, aten.rms_norm.default)
def layer_norm_less(smaller: Smaller) -> Changed | None:
    """The shape that is normalised is written out."""
    call = smaller.call
    last = call.first()[-len(call.arguments["normalized_shape"]) :]
    sizes = [smaller.count(labels) for labels in last]
    return Changed(call.node.target, (call.node.args[0], sizes, *call.node.args[2:]))


def _with_arguments(call: Call, channels: Labels, *names: str) -> None:
    for name in names:
        if call.arguments.get(name) is not None:
            call.couple(channels, call.dims(call.arguments[name])[0])


def _with_weights(call: Call, x: Dims, dim: int) -> Dims:
    for tensor in module_tensors(call.leaf).values():
        if tensor.dim() == 1:  # the number of batches has no dimension
            call.couple(x[dim], call.trace.weight(tensor)[0])
    return x
