"""Second moments of what layers take: how much an error of their weights costs.

A layer that computes W x instead errs by E x where its weights err by E, so that the mean squared
error of an output is e H e', with e its row of E and H the mean of x x'.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import windows
from fxopt_quantize.halves import wide
from fxopt_quantize.modules import QuantConv, QuantLayer, QuantLinear
from fxopt_quantize.shared_means import SharedMeans

# Columns of a batch that are enough: neighbours in an image are alike, and there are more batches.
_COLUMNS = 1 << 14


@dataclass
class Reconstruction:
    """What it takes to choose the integers of some weights by what they do to outputs.

    Attributes:
        layers: The layers that have these weights; more than one if they are tied.
        weight: In float, as (groups, outputs of a group, inputs of a group and kernel).
        scale: Of each output, as (groups, outputs of a group, 1).
        moments: The mean of x x', as (groups, inputs and kernel, inputs and kernel).
    """

    layers: list[QuantLayer]
    weight: torch.Tensor
    scale: torch.Tensor
    moments: torch.Tensor

    def put(self, values: torch.Tensor) -> None:
        """Gives all layers new integers, in the shape of ``weight``."""
        integers = values.to(torch.int8).reshape(self.layers[0].weight_values.shape)
        for layer in self.layers:
            layer.weight_values = integers


class InputMoments:
    """Watches layers in float, and gathers the moments of what their int8 counterparts take.

    Transposed convolutions are left out.

    Args:
        layers: The counterparts, by the nodes of the layers in the order of the graph.
        roundings: What rounds the input of each.
    """

    def __init__(
        self, layers: Mapping[fx.Node, QuantLayer], roundings: Mapping[fx.Node, nn.Module]
    ) -> None:
        self._layers = {n: q for n, q in layers.items() if isinstance(q, (QuantLinear, QuantConv))}
        self._roundings = roundings
        self._moments = SharedMeans(
            {node: id(layer.weight_values) for node, layer in self._layers.items()},
            {
                node: (node.all_input_nodes[0], roundings[node], _geometry(layer))
                for node, layer in self._layers.items()
            },
        )

    def __len__(self) -> int:
        return len(self._moments.by_weight)

    def parts(self) -> Iterator[tuple[str, InputMoments]]:
        """The same for some of the layers each, to be watched one after another to save memory.

        With each comes a text for the user that says which of several parts it is.
        """
        for name, nodes in self._moments.parts(lambda node: _bytes(self._layers[node])):
            yield name, InputMoments({node: self._layers[node] for node in nodes}, self._roundings)

    def __call__(self, node: fx.Node, inputs: Sequence[Any], value: Any) -> None:
        """Takes in one batch."""
        if node in self._moments.watched:
            columns = _columns(self._layers[node], self._roundings[node](inputs[0]))
            self._moments.watched[node].update(second_moments(columns), columns.shape[2])

    def found(self, weights: Mapping[fx.Node, torch.Tensor]) -> Iterator[Reconstruction]:
        """One for each weight of which some inputs were seen.

        Args:
            weights: In float, by the nodes of the layers.
        """
        tied: dict[int, dict[fx.Node, QuantLayer]] = {}
        for node, layer in self._layers.items():
            tied.setdefault(id(layer.weight_values), {})[node] = layer
        for key, tied_layers in tied.items():
            node, first = next(iter(tied_layers.items()))
            groups = _groups(first)
            moments = self._moments.by_weight[key]
            if moments.count:
                weight = wide(weights[node].detach())
                weight = weight.reshape(groups, len(weight) // groups, -1)
                outputs = weight.shape[:2].numel()
                scale = wide(first.weight_scale).flatten().expand(outputs).reshape(groups, -1, 1)
                layers = list(dict.fromkeys(tied_layers.values()))
                yield Reconstruction(layers, weight, scale, moments.value)


def _groups(layer: QuantLayer) -> int:
    return int(layer.settings["groups"]) if isinstance(layer, QuantConv) else 1


def _geometry(layer: QuantLayer) -> tuple[Hashable, ...]:
    """All that the columns of an input depend on."""
    if not isinstance(layer, QuantConv):
        return ()
    settings = (layer.settings[name] for name in ("stride", "dilation", "groups"))
    return layer.weight_values.shape[2:], *settings, tuple(layer.pads), layer.padding_mode


def _bytes(layer: QuantLayer) -> int:
    inputs = layer.weight_values[0].numel()
    return moment_bytes(inputs, layer.weight_scale.dtype, groups=_groups(layer))


def _columns(layer: QuantLayer, x: torch.Tensor) -> torch.Tensor:
    """What each output is a product with, as (groups, inputs and kernel, outputs)."""
    if not isinstance(layer, QuantConv):
        return linear_columns(x)[None]
    kernel = layer.weight_values.shape[2:]
    if x.dim() == len(kernel) + 1:
        x = x[None]
    spatial, given = range(2, x.dim()), layer.settings
    x = windows(
        x,
        kernel=kernel,
        stride=given["stride"],
        dilation=given["dilation"],
        pads=layer.pads,
        padding_mode=layer.padding_mode,
    )
    step = _stride(x[:, 0].numel() // kernel.numel(), len(kernel))
    x = x[(slice(None), slice(None), *[slice(None, None, step)] * len(kernel))]
    order = (1, *range(2 + len(kernel), x.dim()), 0, *spatial)
    groups = _groups(layer)
    return x.permute(order).reshape(groups, x.shape[1] // groups * kernel.numel(), -1)


def second_moments(columns: torch.Tensor) -> torch.Tensor:
    """The mean of x x' over all columns x, in float32 or float64.

    Args:
        columns: As (..., inputs, columns); there may be none.
    """
    columns = wide(columns)
    return columns @ columns.transpose(-1, -2) / max(columns.shape[-1], 1)


def moment_bytes(inputs: int, dtype: torch.dtype, groups: int = 1) -> int:
    """What second moments of inputs in some dtype take."""
    return groups * inputs**2 * torch.promote_types(dtype, torch.float32).itemsize


def linear_columns(x: torch.Tensor) -> torch.Tensor:
    """What a linear layer multiplies with, as (inputs, rows); of very many rows some."""
    rows = x.reshape(-1, x.shape[-1])
    return rows[:: _stride(len(rows), 1)].t()


def _stride(count: int, dimensions: int) -> int:
    """Steps along each dimension that leave as many of so many positions as are enough."""
    return max(1, round(math.pow(count / _COLUMNS, 1 / dimensions)))
