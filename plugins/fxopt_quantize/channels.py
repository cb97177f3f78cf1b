"""Where a layer's channels are, and ranges and factors per channel of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_STRETCH = 32.0

Layer = Any
"""A linear layer, convolution, or transposed convolution without groups."""


def bounded_stretch(factors: torch.Tensor, usual: torch.Tensor) -> torch.Tensor:
    """Factors to divide channels by, such that none is stretched too far beyond the usual one.

    A channel that was almost silent may be louder on other data, and what is beyond the common
    range is cut off; a bias that is stretched makes that range coarse for all.

    Args:
        factors: Of each channel.
        usual: That of a channel as others are.
    """
    return torch.maximum(factors, usual / _STRETCH)


def channel_axis(weight: torch.Tensor, value: torch.Tensor) -> int:
    """Which dimension of a layer's input or output are its channels.

    They are the last one of a linear layer, and lie in front of the space of a convolution, be
    there a batch or not.

    Args:
        weight: The layer's.
        value: What the layer takes or yields.
    """
    return value.dim() - (weight.dim() - 1)


def output_ranges(layer: Layer) -> torch.Tensor:
    """The largest magnitude among the weights of each output channel."""
    return _matrices(layer).abs().amax((2, 3)).flatten()


def input_ranges(layer: Layer) -> torch.Tensor:
    """The largest magnitude among the weights of each input channel."""
    return _matrices(layer).abs().amax((1, 3)).flatten()


def divide_outputs(layer: Layer, factors: torch.Tensor) -> None:
    """Divides what each output channel yields, by changing weights and bias in place."""
    shape = [1] * layer.weight.dim()
    shape[1 if _is_transposed(layer) else 0] = -1
    layer.weight.div_(factors.view(shape))
    if layer.bias is not None:
        layer.bias.div_(factors)


def multiply_inputs(layer: Layer, factors: torch.Tensor) -> None:
    """Makes up for inputs that were divided, by changing weights in place."""
    weight, groups = layer.weight, _groups(layer)
    if _is_transposed(layer):
        each = factors[:, None]
    else:  # the row of an output channel meets the inputs of its group alone
        each = factors.view(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
    weight.mul_(each.view(*each.shape, *[1] * (weight.dim() - 2)))


def _matrices(layer: Layer) -> torch.Tensor:
    """The weights as (groups, outputs of each, inputs of each, size of the kernel)."""
    weight: torch.Tensor = layer.weight.detach()
    weight = weight.transpose(0, 1) if _is_transposed(layer) else weight
    outputs, inputs = weight.shape[:2]
    return weight.reshape(_groups(layer), outputs // _groups(layer), inputs, -1)


def _groups(layer: Layer) -> int:
    return int(getattr(layer, "groups", 1))


def _is_transposed(layer: Layer) -> bool:
    return isinstance(layer, nn.modules.conv._ConvTransposeNd)
