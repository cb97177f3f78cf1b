"""Reference modules: what an int8 layer computes, written as quantize and dequantize pairs.

They run in float and give, but for rounding, the numbers that integer kernels give. Backends are
handed their plain ATen: ``fake_quantize_*`` on activations, and weights that are stored in few
bits and multiplied by their scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fxopt.plugin import LeafModule
from fxopt_quantize.formats import UINT8
from fxopt_quantize.lsq import LearnedWeight, learned_rounding
from fxopt_quantize.shapes import register
from fxopt_quantize.weights import QuantizedWeight

register()

QMIN, QMAX = int(UINT8.lowest), int(UINT8.highest)
"""Activations are quantized to uint8."""


class FakeQuantize(LeafModule):
    """Rounds a tensor to 256 evenly spaced values, one of which is zero.

    Args:
        scale: Distance between neighbours; positive.
        zero_point: The integer in 0..255 that stands for zero.
    """

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.scale = scale
        self.zero_point = zero_point
        self.step: nn.Parameter | None = None  # in training, instead of the scale

    @property
    def largest(self) -> float:
        """The largest of the values."""
        return (QMAX - self.zero_point) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.step is not None:
            return learned_rounding(x, self.step, self.zero_point, QMIN, QMAX, len(x))
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, QMIN, QMAX)

    def extra_repr(self) -> str:
        return f"scale={self.scale:.6g}, zero_point={self.zero_point}"


class FakeQuantizePerChannel(LeafModule):
    """Rounds each channel (dimension 1) of a tensor to 256 values of its own.

    Integer kernels cannot sum over channels of different scales, so this is for depthwise
    convolutions alone, where no sum crosses channels.

    Args:
        scale: One per channel; positive.
        zero_point: One for all channels.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, scale: torch.Tensor, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        points = torch.full_like(scale, zero_point, dtype=torch.int32)
        self.register_buffer("zero_point", points)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_channel_affine(x, self.scale, self.zero_point, 1, QMIN, QMAX)

    def extra_repr(self) -> str:
        return f"{len(self.scale)} scales, zero_point={int(self.zero_point[0])}"


class QuantLayer(LeafModule):
    """A layer with weights in few bits; a subclass says what it computes with them."""

    precision = "int8"

    weight_values: torch.Tensor
    weight_scale: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: QuantizedWeight, bias: torch.Tensor | None) -> None:
        super().__init__()
        # Not called `weight`, so that a state dict of float weights is refused, not truncated.
        self.register_buffer("weight_values", weight.values)
        self.register_buffer("weight_scale", weight.scale)
        self.register_parameter("bias", _parameter(bias))
        self.learned: LearnedWeight | None = None  # in training, instead of the integers

    @property
    def weight(self) -> torch.Tensor:
        """The weights in float, on the grid of their int8 values."""
        if self.learned is not None:
            rounded: torch.Tensor = self.learned()
            return rounded
        return self.weight_values.to(self.weight_scale.dtype) * self.weight_scale

    def products(self, given: torch.Tensor, value: torch.Tensor) -> float:
        """Multiply-adds of a call, by what it takes and yields."""
        return float(value.numel()) * self.weight_values[0].numel()


class QuantLinear(QuantLayer):
    """A linear layer with weights in few bits."""

    family = "linear"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        outputs, inputs = self.weight_values.shape
        return f"in_features={inputs}, out_features={outputs}, bias={self.bias is not None}"


class QuantConv(QuantLayer):
    """A convolution over one, two or three dimensions with weights in few bits.

    Args:
        conv: The layer in float, for its geometry and bias.
        weight: Its weights.
    """

    family = "convolution"

    def __init__(self, conv: nn.modules.conv._ConvNd, weight: QuantizedWeight) -> None:
        super().__init__(weight, conv.bias)
        self.settings: dict[str, Any] = {
            "stride": conv.stride,
            "padding": conv.padding,
            "dilation": conv.dilation,
            "groups": conv.groups,
        }
        self.padding_mode = conv.padding_mode
        self.pads = list(conv._reversed_padding_repeated_twice)
        self._described = str(conv.extra_repr())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        if self.padding_mode != "zeros":
            x = F.pad(x, self.pads, mode=self.padding_mode)
            settings = {**settings, "padding": 0}
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[self.weight_values.dim() - 3]
        output: torch.Tensor = convolve(x, self.weight, self.bias, **settings)
        return output

    def extra_repr(self) -> str:
        return self._described


class QuantConvTranspose(QuantLayer):
    """A transposed convolution over one, two or three dimensions with weights in few bits.

    Args:
        conv: The layer in float, for its geometry and bias.
        weight: Its weights.
    """

    family = "convolution"

    def __init__(self, conv: nn.modules.conv._ConvTransposeNd, weight: QuantizedWeight) -> None:
        super().__init__(weight, conv.bias)
        self.settings: dict[str, Any] = {
            "stride": conv.stride,
            "padding": conv.padding,
            "output_padding": conv.output_padding,
            "groups": conv.groups,
            "dilation": conv.dilation,
        }
        self._described = str(conv.extra_repr())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        functions = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
        convolve: Any = functions[self.weight_values.dim() - 3]
        output: torch.Tensor = convolve(x, self.weight, self.bias, **self.settings)
        return output

    def products(self, given: torch.Tensor, value: torch.Tensor) -> float:
        """Each input is multiplied, instead of each output."""
        return super().products(value, given)

    def extra_repr(self) -> str:
        return self._described


def _parameter(bias: torch.Tensor | None) -> nn.Parameter | None:
    if bias is None or isinstance(bias, nn.Parameter):
        return bias
    return nn.Parameter(bias, requires_grad=False)
