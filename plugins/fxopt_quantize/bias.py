"""Bias correction: rounding shifts the mean of a layer's outputs, and the bias shifts it back.

Empirical bias correction of Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction" (2019), section 4.2, for all layers at once: each is compared with its original
on the original's own inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx, nn

from fxopt_quantize.channels import channel_axis
from fxopt_quantize.halves import wide
from fxopt_quantize.means import RunningMean
from fxopt_quantize.modules import QuantLayer


class BiasErrors:
    """Watches layers in float, and tells how far the means of their int8 counterparts are off.

    Args:
        layers: The counterparts, by the nodes of the layers.
        roundings: What rounds the input of each.
    """

    def __init__(
        self, layers: Mapping[fx.Node, QuantLayer], roundings: Mapping[fx.Node, nn.Module]
    ) -> None:
        self._layers = layers
        self._roundings = roundings
        self._means = {layer: RunningMean() for layer in layers.values()}

    def __call__(self, node: fx.Node, inputs: Sequence[Any], value: Any) -> None:
        """Takes in one batch."""
        if node not in self._roundings:
            return
        layer = self._layers[node]
        error = wide(layer(self._roundings[node](inputs[0]))) - value
        channels = error.movedim(channel_axis(layer.weight_values, error), 0)
        channels = channels.reshape(len(channels), -1)
        self._means[layer].update(channels.mean(1), channels.shape[1])

    def correct(self) -> None:
        """Shifts the biases of the layers in int8; those called twice by the mean of both calls."""
        for layer, mean in self._means.items():
            if mean.count:
                shift = mean.value.nan_to_num(0.0, 0.0, 0.0)  # what is infinite cannot be shifted
                bias = -shift if layer.bias is None else layer.bias.detach() - shift
                bias = bias.to(layer.weight_scale.dtype)
                layer.bias = nn.Parameter(bias, requires_grad=False)
