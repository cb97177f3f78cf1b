"""What a layer says of its own sizes, after its weights have become smaller."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxopt_prune.channels.rules import Smaller
from fxopt_prune.channels.trace import Dims

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PER_CHANNEL = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def set_sizes(leaf: Any, smaller: Smaller) -> None:
    """Sets the sizes of a leaf.

    Args:
        leaf: A layer whose weights have their new shapes.
        smaller: A call of it, with the labels of before.
    """
    x = smaller.call.first()
    if isinstance(leaf, nn.Linear):
        leaf.out_features, leaf.in_features = leaf.weight.shape
    elif isinstance(leaf, _CONVOLUTIONS):
        leaf.in_channels = smaller.count(x[_channel(leaf, x)])
        leaf.out_channels, each = leaf.weight.shape[:2]
        leaf.groups = leaf.in_channels // each
    elif isinstance(leaf, _TRANSPOSED):
        made: Any = smaller.call.trace.values[smaller.call.node]
        leaf.in_channels, each = leaf.weight.shape[:2]
        leaf.out_channels = smaller.count(made[_channel(leaf, x)])
        leaf.groups = leaf.out_channels // each
    elif isinstance(leaf, nn.GroupNorm):
        leaf.num_channels = smaller.count(x[1])
    elif isinstance(leaf, _PER_CHANNEL):
        leaf.num_features = smaller.count(x[_channel_of_norm(leaf, x)])
    else:
        _set_others(leaf, x, smaller)


def _set_others(leaf: Any, x: Dims, smaller: Smaller) -> None:
    if isinstance(leaf, (nn.LayerNorm, nn.RMSNorm)):
        normalized = x[-len(leaf.normalized_shape) :]
        leaf.normalized_shape = tuple(smaller.count(labels) for labels in normalized)
    elif isinstance(leaf, nn.Embedding):
        leaf.embedding_dim = leaf.weight.shape[1]
    elif isinstance(leaf, nn.PReLU):
        leaf.num_parameters = leaf.weight.numel()
    elif isinstance(leaf, nn.RNNBase):
        leaf.input_size = smaller.count(x[-1])
        leaf.hidden_size = leaf.get_parameter("weight_hh_l0").shape[1]


def _channel(leaf: Any, x: Dims) -> int:
    return len(x) - len(leaf.kernel_size) - 1


def _channel_of_norm(leaf: nn.Module, x: Dims) -> int:
    if isinstance(leaf, nn.modules.instancenorm._InstanceNorm):
        return len(x) - int(type(leaf).__name__[-2]) - 1
    return 1
