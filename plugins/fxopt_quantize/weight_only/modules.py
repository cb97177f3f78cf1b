"""Reference modules: layers that hold their weights in few bits, and compute in float."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fxopt.plugin import LeafModule
from fxopt_quantize.weight_only.grouped import dequantized
from fxopt_quantize.weight_only.packing import unpack, unpack_floats
from fxopt_quantize.weight_only.stored import StoredWeight


class WeightOnly(LeafModule):
    """A layer whose weights are a matrix of integers with a scale for each group.

    Args:
        weight: The matrix; tensors that other layers share stay shared.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self, weight: StoredWeight) -> None:
        super().__init__()
        self.register_buffer("packed", weight.packed)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero_point", weight.zero_point)
        self.weight_bits = weight.bits
        self.group = weight.group

    def codes(self) -> torch.Tensor:
        """uint8, of shape (rows, groups, size of a group)."""
        return unpack(self.packed, self.weight_bits, self.group)

    @property
    def weight(self) -> torch.Tensor:
        """The weights in float, on the grids of their integers."""
        return dequantized(self.codes(), self.scale, self.zero_point).flatten(1)


class WeightOnlyLinear(WeightOnly):
    """A linear layer with weights in few bits.

    Args:
        weight: Its matrix, a row for each output.
        bias: Float, or None.
    """

    family = "linear"
    bias: nn.Parameter | None

    def __init__(self, weight: StoredWeight, bias: nn.Parameter | None) -> None:
        super().__init__(weight)
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight, self.bias)

    def exported(self) -> nn.Module:
        """The same with a byte for each weight, as other runtimes read it."""
        return _Unpacked(self)

    def extra_repr(self) -> str:
        outputs, inputs = len(self.scale), self.scale.shape[1] * self.group
        return f"{inputs} -> {outputs}, {self.weight_bits} bits, groups of {self.group}"


class WeightOnlyEmbedding(WeightOnly):
    """A table of vectors in few bits, of which only those that are looked up become float.

    Args:
        weight: A row for each index.
    """

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        rows = F.embedding(index, self.packed)
        codes = unpack_floats(rows, self.scale.dtype, self.weight_bits, self.group)
        scale = F.embedding(index, self.scale.squeeze(-1)).unsqueeze(-1)
        zero = F.embedding(index, self.zero_point.squeeze(-1)).unsqueeze(-1)
        return ((codes - zero.to(codes.dtype)) * scale).flatten(-2)

    def extra_repr(self) -> str:
        entries, width = len(self.scale), self.scale.shape[1] * self.group
        return f"{entries} x {width}, {self.weight_bits} bits, groups of {self.group}"


class _Unpacked(nn.Module):
    """A linear layer as plain operators on bytes."""

    codes: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, layer: WeightOnlyLinear) -> None:
        super().__init__()
        self.codes = nn.Buffer(layer.codes())
        self.scale = layer.scale
        self.zero_point = layer.zero_point
        self.bias = layer.bias
        self.shape = (len(layer.scale), layer.scale.shape[1] * layer.group)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = dequantized(self.codes, self.scale, self.zero_point)
        return F.linear(x, weight.reshape(self.shape), self.bias)
