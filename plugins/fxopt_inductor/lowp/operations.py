"""Writes int8 layers as calls of oneDNN's operators."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxopt.plugin import Kernel
from fxopt_inductor.lowp.grid import ChannelGrid, Grid
from fxopt_inductor.lowp.layers import QuantLayer
from fxopt_inductor.lowp.operators import find_operator
from fxopt_inductor.lowp.postops import NONE, PostOp
from fxopt_inductor.lowp.writer import Writer

aten = torch.ops.aten


@dataclass(frozen=True)
class Result:
    """How an int8 operator gives its result.

    Attributes:
        op: What it applies before it rounds.
        dtype: Of the result.
        scale: Of the result, if that is uint8.
        zero_point: Of the result, if that is uint8.
    """

    op: PostOp = NONE
    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    zero_point: int = 0

    def arguments(self) -> tuple[Any, ...]:
        """As the operators take them."""
        return (self.scale, self.zero_point, self.dtype)


@dataclass(frozen=True)
class Addend:
    """What an int8 operator adds to its result, and then writes over.

    Attributes:
        codes: uint8, of the shape of the result.
        grid: What they mean.
    """

    codes: fx.Node
    grid: Grid


@dataclass(frozen=True)
class Layer:
    """An int8 layer to be written.

    Attributes:
        layer: What it computes.
        codes: Its input, uint8.
        shape: Of its input.
        scale: Of its input.
        zero_point: Of its input.
    """

    layer: QuantLayer
    codes: fx.Node
    shape: torch.Size
    scale: float
    zero_point: int

    @property
    def kernel(self) -> Kernel:
        """What it is listed as, however it is computed."""
        return Kernel(self.layer.name, self.layer.kind, "int8")

    @staticmethod
    def of(layer: QuantLayer, codes: fx.Node, shape: torch.Size, grid: Grid | ChannelGrid) -> Layer:
        """A layer whose input is on ``grid``, with what can be folded into the weights folded."""
        if isinstance(grid, ChannelGrid):
            layer = layer.with_input_scales(grid.scales)
            return _simplified(Layer(layer, codes, shape, 1.0, grid.zero_point))
        return _simplified(Layer(layer, codes, shape, grid.scale, grid.zero_point))

    def write(self, writer: Writer, result: Result, rows: bool, addend: Addend | None) -> fx.Node:
        """Writes it.

        Args:
            writer: Where to.
            result: What it shall give.
            rows: Whether pointwise convolutions become linear layers.
            addend: What it adds, if anything.
        """
        if addend is not None:
            addend = _dense(writer, addend, self.layer.dims)
        if self.layer.dims == 0:
            return self._linear(writer, self.codes, self.shape, result, addend)
        if self.layer.is_pointwise and rows and addend is None:
            return self._rows(writer, result)
        if self.layer.dims == 1:  # without an addend: there is no sum for these
            flat = replace(self, codes=writer.call(aten.unsqueeze.default, self.codes, 2))
            written = flat._wide()._convolution(writer, result, None)
            return writer.call(aten.squeeze.dim, written, 2)
        return self._convolution(writer, result, addend)

    def _wide(self) -> Layer:
        """A convolution over one dimension as one over two."""
        layer = self.layer
        wide = replace(
            layer,
            weight=layer.weight.unsqueeze(2),
            dims=2,
            stride=[1, *layer.stride],
            padding=[0, *layer.padding],
            dilation=[1, *layer.dilation],
        )
        return replace(self, layer=wide, shape=torch.Size([*self.shape[:2], 1, self.shape[2]]))

    def _rows(self, writer: Writer, result: Result) -> fx.Node:
        """A pointwise convolution as a linear layer on rows of channels."""
        batch, channels, *pixels = self.shape
        to_last = [0, *range(2, len(self.shape)), 1]
        to_first = [0, len(self.shape) - 1, *range(1, len(self.shape) - 1)]
        moved = writer.call(aten.permute.default, self.codes, to_last)
        rows = writer.call(aten.reshape.default, moved, [-1, channels])
        layer = replace(self.layer, weight=self.layer.weight.flatten(1), dims=0)
        shape = torch.Size([batch * math.prod(pixels), channels])
        linear = replace(self, layer=layer)._linear(writer, rows, shape, result, None)
        shaped = writer.call(aten.reshape.default, linear, [batch, *pixels, len(layer.weight)])
        return writer.call(aten.permute.default, shaped, to_first)

    def _linear(
        self,
        writer: Writer,
        codes: fx.Node,
        shape: torch.Size,
        result: Result,
        addend: Addend | None,
    ) -> fx.Node:
        prepack = find_operator("qlinear_prepack", "default")
        weight = prepack(self.layer.weight.contiguous(), list(shape))
        scales, points, bias = self._constants(writer)
        packed = writer.constant(f"{self.layer.name}_weight", weight)
        inputs = (codes, self.scale, self.zero_point, packed, scales, points)
        if addend is None:
            target = find_operator("qlinear_pointwise", "default")
            tail = (bias, *result.arguments(), *_unary(result))
            return writer.heavy(self.kernel, target, *inputs, *tail)
        target = find_operator("qlinear_pointwise", "binary")
        sums = (addend.grid.scale, addend.grid.zero_point, "sum", 1.0, *_unary(result))
        tail = (addend.codes, bias, *result.arguments(), *sums)
        return writer.heavy(self.kernel, target, *inputs, *tail)

    def _sees_padding_alone(self) -> bool:
        """Whether windows lie in the padding as a whole, which has another value than zero.

        oneDNN takes what happens to lie in memory for some of these where there is one channel.
        """
        sizes = zip(
            self.layer.padding, self.layer.weight.shape[2:], self.layer.dilation, strict=True
        )
        return self.zero_point != 0 and any(p > (k - 1) * d for p, k, d in sizes)

    def _padded(self, writer: Writer) -> Layer:
        """The same on an input that is padded already."""
        padding = self.layer.padding
        sides = [size for size in reversed(padding) for _ in range(2)]
        codes = writer.call(aten.constant_pad_nd.default, self.codes, sides, self.zero_point)
        sizes = [size + 2 * pad for size, pad in zip(self.shape[2:], padding, strict=True)]
        layer = replace(self.layer, padding=[0] * len(padding))
        shape = torch.Size([*self.shape[:2], *sizes])
        return _simplified(replace(self, layer=layer, codes=codes, shape=shape))

    def _convolution(self, writer: Writer, result: Result, addend: Addend | None) -> fx.Node:
        if self._sees_padding_alone():
            return self._padded(writer)._convolution(writer, result, addend)
        layer = self.layer
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        prepack = find_operator("qconv_prepack", "default")
        zero_point, shape = self.zero_point, list(self.shape)
        weight = prepack(layer.weight, layer.scale, self.scale, zero_point, *geometry, shape)
        scales, points, bias = self._constants(writer)
        packed = writer.constant(f"{layer.name}_weight", weight)
        inputs = (self.codes, self.scale, zero_point, packed, scales, points)
        if addend is None:
            target = find_operator("qconv_pointwise", "default")
            tail = (bias, *geometry, *result.arguments(), *_unary(result))
            return writer.heavy(self.kernel, target, *inputs, *tail)
        target = find_operator("qconv2d_pointwise", "binary")
        sums = (addend.grid.scale, addend.grid.zero_point, "sum", 1.0, *_unary(result))
        tail = (addend.codes, bias, *geometry, *result.arguments(), *sums)
        return writer.heavy(self.kernel, target, *inputs, *tail)

    def _constants(self, writer: Writer) -> tuple[fx.Node, fx.Node, fx.Node | None]:
        layer = self.layer
        points = torch.zeros(len(layer.scale), dtype=torch.int32)
        bias = None if layer.bias is None else writer.constant(f"{layer.name}_bias", layer.bias)
        return (
            writer.constant(f"{layer.name}_scale", layer.scale),
            writer.constant(f"{layer.name}_zero_points", points),
            bias,
        )


def _simplified(whole: Layer) -> Layer:
    if whole.zero_point == 0 or whole.layer.is_padded:
        return whole
    layer = whole.layer.without_zero_point(whole.scale, whole.zero_point)
    return replace(whole, layer=layer, zero_point=0)


def _unary(result: Result) -> tuple[Any, ...]:
    return (result.op.name, list(result.op.scalars), result.op.algorithm)


def _dense(writer: Writer, addend: Addend, dims: int) -> Addend:
    """An addend in the layout in which the operators can write over it; mostly it is already."""
    layout = torch.channels_last if dims else torch.contiguous_format
    codes = writer.call(aten.contiguous.default, addend.codes, memory_format=layout)
    return replace(addend, codes=codes)
