"""Reference module: recurrent layers that hold their matrices in few bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxopt.plugin import LeafModule
from fxopt_quantize.weight_only.grouped import dequantized
from fxopt_quantize.weight_only.packing import unpack
from fxopt_quantize.weight_only.stored import StoredWeight

_CLASSES: dict[str, type[nn.RNNBase]] = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN_TANH": nn.RNN,
    "RNN_RELU": nn.RNN,
}


def matrices(layer: nn.RNNBase) -> dict[str, nn.Parameter]:
    """The weights of a recurrent layer but for its biases, by name."""
    named = {name: layer.get_parameter(name) for name in _names(layer)}
    return {name: tensor for name, tensor in named.items() if tensor.dim() > 1}


class WeightOnlyRecurrent(LeafModule):
    """An LSTM, GRU or RNN with weights in few bits, which are read once for all steps.

    Args:
        layer: In float, for its geometry and biases; it is called alike.
        stored: Its matrices by name, in groups of one size; what others share stays shared.
    """

    def __init__(self, layer: nn.RNNBase, stored: Mapping[str, StoredWeight]) -> None:
        super().__init__()
        self.mode = layer.mode
        self.settings: dict[str, Any] = {
            "input_size": layer.input_size,
            "hidden_size": layer.hidden_size,
            "num_layers": layer.num_layers,
            "bias": layer.bias,
            "batch_first": layer.batch_first,
            "dropout": layer.dropout,
            "bidirectional": layer.bidirectional,
        }
        self.settings |= {"proj_size": layer.proj_size} if layer.proj_size else {}
        self.order = _names(layer)
        self.groups = {name: each.group for name, each in stored.items()}
        self.weight_bits = next(iter(stored.values())).bits
        for name in self.order:
            if name in stored:
                self.register_buffer(f"{name}_packed", stored[name].packed)
                self.register_buffer(f"{name}_scale", stored[name].scale)
                self.register_buffer(f"{name}_zero_point", stored[name].zero_point)
            else:
                self.register_parameter(name, layer.get_parameter(name))

    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        function = getattr(torch._VF, self.mode.lower())
        settings = self.settings
        found = function(
            x,
            state,
            [self._weight(name) for name in self.order],
            settings["bias"],
            settings["num_layers"],
            settings["dropout"],
            self.training,
            settings["bidirectional"],
            settings["batch_first"],
        )
        return (found[0], tuple(found[1:])) if self.mode == "LSTM" else (found[0], found[1])

    def exported(self) -> nn.Module:
        """The layer of torch with rounded weights, for which runtimes have an operation."""
        kind = _CLASSES[self.mode]
        extra: dict[str, Any] = {}
        if kind is nn.RNN:
            extra["nonlinearity"] = self.mode.removeprefix("RNN_").lower()
        with torch.device("meta"):
            layer = kind(**self.settings, **extra)
        for name in self.order:
            value = nn.Parameter(self._weight(name).detach(), requires_grad=False)
            setattr(layer, name, value)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        sizes = f"{self.settings['input_size']} -> {self.settings['hidden_size']}"
        return f"{self.mode.lower()}, {sizes}, {self.weight_bits} bits"

    def _weight(self, name: str) -> torch.Tensor:
        """A matrix in float on the grid of its integers, or a bias."""
        # by getattr, since tracing puts other tensors in place of parameters
        if name not in self.groups:
            bias: torch.Tensor = getattr(self, name)
            return bias
        packed, scale, zero = (
            getattr(self, f"{name}_{part}") for part in ("packed", "scale", "zero_point")
        )
        codes = unpack(packed, self.weight_bits, self.groups[name])
        return dequantized(codes, scale, zero).flatten(1)


def _names(layer: nn.RNNBase) -> list[str]:
    """Of all parameters, in the order in which torch's operators take them."""
    return [name for names in layer._all_weights for name in names]
