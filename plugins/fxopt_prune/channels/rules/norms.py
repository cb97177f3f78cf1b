"""Normalisation: statistics of each channel on its own, of groups, or of all together."""

from __future__ import annotations

from torch import nn

from fxopt_prune.channels.blocks import couple_columns
from fxopt_prune.channels.rules.registry import rule
from fxopt_prune.channels.trace import Call, Dims, module_tensors


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


def _with_weights(call: Call, x: Dims, dim: int) -> Dims:
    for tensor in module_tensors(call.leaf).values():
        if tensor.dim() == 1:  # the number of batches has no dimension
            call.couple(x[dim], call.trace.weight(tensor)[0])
    return x
