"""Layers with int8 weights: how they look in an exported program, and their geometry."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from fxopt_inductor.lowp.constants import constant, owner_name

aten = torch.ops.aten

_CONVOLUTIONS: dict[Any, int] = {
    aten.conv1d.default: 1,
    aten.conv1d.padding: 1,
    aten.conv2d.default: 2,
    aten.conv2d.padding: 2,
    aten.conv3d.default: 3,
    aten.conv3d.padding: 3,
}


@dataclass(frozen=True)
class QuantLayer:
    """A convolution or linear layer with weights in int8.

    Attributes:
        name: Its qualified name in the user's model.
        weight: int8; output channels first.
        scale: One per output channel, float32.
        bias: float32.
        kind: What it is in the user's model: ``Convolution`` or ``MatMul``.
        dims: Spatial dimensions; 0 for a linear layer.
        stride: One per spatial dimension, as the following ones.
        padding: Zeros at both ends.
        dilation: Distance of taps.
        groups: Of channels.
    """

    name: str
    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None
    kind: str
    dims: int
    stride: list[int] = field(default_factory=list)
    padding: list[int] = field(default_factory=list)
    dilation: list[int] = field(default_factory=list)
    groups: int = 1

    @property
    def is_pointwise(self) -> bool:
        """Whether it is a convolution that is a linear layer on each pixel."""
        ones = all(size == 1 for size in self.weight.shape[2:])
        dense = self.groups == 1 and set(self.stride) == {1} and not self.is_padded
        return self.dims > 0 and ones and dense

    @property
    def is_padded(self) -> bool:
        """Whether it adds zeros at the borders."""
        return any(self.padding)

    @property
    def is_depthwise(self) -> bool:
        """Whether no sum crosses input channels."""
        return self.groups > 1 and self.weight.shape[1] == 1

    def with_input_scales(self, scales: torch.Tensor) -> QuantLayer:
        """The layer for codes of one scale per input channel; it must be depthwise.

        The codes then count as if their scale was 1.
        """
        repeats = len(self.scale) // len(scales)
        return replace(self, scale=self.scale * scales.repeat_interleave(repeats))

    def with_output_scales(self, scales: torch.Tensor) -> QuantLayer:
        """The layer that yields its outputs in units of one scale per output channel."""
        bias = None if self.bias is None else self.bias / scales
        return replace(self, scale=self.scale / scales, bias=bias)

    def without_zero_point(self, scale: float, zero_point: int) -> QuantLayer:
        """The layer for codes that count as if zero was 0; it must not be padded.

        sum(w * s * (q - z)) is sum(w * s * q) less a constant per output channel, which goes to
        the bias: the kernels for a zero point of 0 are the fastest.
        """
        # int64: a float32 sum would round
        sums = self.weight.flatten(1).sum(1, dtype=torch.int64).double()
        shift = sums * (self.scale.double() * scale * zero_point)
        bias = -shift if self.bias is None else self.bias.double() - shift
        return replace(self, bias=bias.float())


def quant_layer(module: fx.GraphModule, node: fx.Node) -> QuantLayer | None:
    """What a node computes, if it is a layer with int8 weights that there are kernels for.

    Args:
        module: Holds the weights.
        node: Any node.
    """
    is_linear = node.target is aten.linear.default
    if not is_linear and node.target not in _CONVOLUTIONS:
        return None
    read = _weight(module, node.args[1])
    if read is None or node.meta["val"].dtype is not torch.float32:
        return None
    weight, scale, name = read
    bias_node = node.args[2] if len(node.args) > 2 else None
    bias = constant(module, bias_node)
    if bias_node is not None and bias is None:
        return None
    if is_linear:
        return QuantLayer(name, weight, scale, bias, "MatMul", dims=0)
    dims = _CONVOLUTIONS[node.target]
    return _convolution(node, QuantLayer(name, weight, scale, bias, "Convolution", dims))


def _weight(module: fx.GraphModule, node: Any) -> tuple[torch.Tensor, torch.Tensor, str] | None:
    """Integers, scales and name of weights that are written as ``integers.to(float) * scale``."""
    if not isinstance(node, fx.Node) or node.target is not aten.mul.Tensor:
        return None
    cast, scale_node = node.args
    casts = (aten.to.dtype, aten._to_copy.default)
    if not isinstance(cast, fx.Node) or cast.target not in casts:
        return None
    weight, scale = constant(module, cast.args[0]), constant(module, scale_node)
    if weight is None or scale is None or weight.dtype is not torch.int8:
        return None
    if scale.numel() not in (1, len(weight)) or scale.dtype is not torch.float32:
        return None
    if scale.numel() > 1 and (scale.dim() != weight.dim() or len(scale) != len(weight)):
        return None
    source = cast.args[0]
    assert isinstance(source, fx.Node)
    return weight, scale.flatten().expand(len(weight)).contiguous(), owner_name(source)


def _convolution(node: fx.Node, layer: QuantLayer) -> QuantLayer | None:
    names = ("stride", "padding", "dilation", "groups")
    given: dict[str, Any] = dict(zip(names, node.args[3:], strict=False)) | dict(node.kwargs)
    dilation = _spread(given.get("dilation", 1), layer.dims)
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        padding = _padding_of(padding, layer.weight.shape[2:], dilation)
        if padding is None:
            return None
    return replace(
        layer,
        stride=_spread(given.get("stride", 1), layer.dims),
        padding=_spread(padding, layer.dims),
        dilation=dilation,
        groups=int(given.get("groups", 1)),
    )


def _padding_of(name: str, kernel: torch.Size, dilation: list[int]) -> list[int] | None:
    """Padding by name as numbers; None where both ends would differ."""
    if name == "valid":
        return [0] * len(kernel)
    totals = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    return None if any(total % 2 for total in totals) else [total // 2 for total in totals]


def _spread(value: Any, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values
