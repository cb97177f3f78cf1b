"""From layers in float to their counterparts in few bits."""

from __future__ import annotations

import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_quantize.formats import INT8, NumberFormat
from fxopt_quantize.modules import QuantConv, QuantConvTranspose, QuantLayer, QuantLinear
from fxopt_quantize.weights import QuantizedWeight, quantize_weight, weight_refusal


def refusal(program: Program, node: fx.Node) -> str | None:
    """Why a layer cannot be quantized; None when it can."""
    layer = program.leaf(node)
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    if (reason := weight_refusal(weight)) is not None:
        return reason
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    if transposed and len(node.args) + len(node.kwargs) > 1:
        return "its output size is computed at run time"
    return None


def int8_refusal(program: Program, node: fx.Node) -> str | None:
    """Why a layer cannot compute in int8; None when it can."""
    layer = program.leaf(node)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd) and layer.groups > 1:
        return "grouped transposed convolutions have no int8 kernels"
    return refusal(program, node)


class LayerFactory:
    """Makes the counterpart of layers in few bits.

    What is tied stays tied: a layer called twice gives one module, and layers that share their
    weights give modules that share theirs.

    Args:
        number: What weights become.
        linear: What linear layers become.
        precision: What the layers are meant to compute in.
        whole: Whether weights have one scale for all output channels.
    """

    def __init__(
        self,
        number: NumberFormat = INT8,
        linear: type[QuantLinear] = QuantLinear,
        precision: str = QuantLayer.precision,
        whole: bool = False,
    ) -> None:
        self._number = number
        self._linear = linear
        self._precision = precision
        self._whole = whole
        self._layers: dict[nn.Module, QuantLayer] = {}
        self._weights: dict[tuple[torch.Tensor, int | None], QuantizedWeight] = {}

    def quantized(self, layer: nn.Module) -> QuantLayer:
        """The counterpart of a convolution or linear layer."""
        if layer not in self._layers:
            self._layers[layer] = self._make(layer)
            self._layers[layer].precision = self._precision
        return self._layers[layer]

    def _make(self, layer: nn.Module) -> QuantLayer:
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            return QuantConvTranspose(layer, self._weight(layer.weight, axis=1))
        if isinstance(layer, nn.modules.conv._ConvNd):
            return QuantConv(layer, self._weight(layer.weight, axis=0))
        assert isinstance(layer, nn.Linear)
        return self._linear(self._weight(layer.weight, axis=0), layer.bias)

    def _weight(self, weight: torch.Tensor, axis: int) -> QuantizedWeight:
        key = (weight, None if self._whole else axis)  # tensors are hashed by identity
        if key not in self._weights:
            self._weights[key] = quantize_weight(*key, self._number)
        return self._weights[key]
