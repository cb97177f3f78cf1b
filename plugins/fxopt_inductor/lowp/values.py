"""The forms in which a tensor of the old graph exists in the new one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from fxopt_inductor.lowp.grid import AnyGrid, ChannelGrid
from fxopt_inductor.lowp.writer import Writer

aten = torch.ops.aten


@dataclass
class Value:
    """A tensor in one form at least; the others are computed when they are asked for.

    Attributes:
        full: In the dtype of the old graph.
        low: In bfloat16.
        codes: As uint8 on ``grid``.
        grid: What the codes mean, and what the values lie on in any form.
        is_low: Whether it was computed in bfloat16, so that there is no more to it.
    """

    full: fx.Node | None = None
    low: fx.Node | None = None
    codes: fx.Node | None = None
    grid: AnyGrid | None = None
    is_low: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_low = self.low is not None and self.full is None

    def as_full(self, writer: Writer) -> fx.Node:
        """In the dtype of the old graph."""
        if self.full is None and self.codes is not None:
            self.full = dequantize(writer, self.codes, self.grid)
        if self.full is None:
            self.full = writer.call(aten._to_copy.default, self.low, dtype=torch.float32)
        return self.full

    def as_low(self, writer: Writer) -> fx.Node:
        """In bfloat16."""
        if self.low is None:
            full = self.as_full(writer)
            self.low = writer.call(aten._to_copy.default, full, dtype=torch.bfloat16)
        return self.low

    def as_codes(self, writer: Writer, grid: AnyGrid) -> fx.Node:
        """Rounded to a grid."""
        if self.codes is not None and self.grid == grid:
            return self.codes
        codes = quantize(writer, self.as_full(writer), grid)
        if self.grid == grid:
            self.codes = codes
        return codes


def quantize(writer: Writer, full: fx.Node, grid: AnyGrid) -> fx.Node:
    """Rounds float32 to codes, as ``fake_quantize_per_tensor_affine`` does."""
    inverse: fx.Node | float
    if isinstance(grid, ChannelGrid):
        inverse = writer.constant("inverse_scales", grid.broadcast(1 / grid.scales))
    else:
        inverse = float(1 / torch.tensor(grid.scale, dtype=torch.float32))
    codes = writer.call(aten.round.default, writer.call(aten.mul.Tensor, full, inverse))
    if grid.zero_point:
        codes = writer.call(aten.add.Tensor, codes, float(grid.zero_point))
    codes = writer.call(aten.clamp.default, codes, 0.0, 255.0)
    return writer.call(aten._to_copy.default, codes, dtype=torch.uint8, name="quantize")


def dequantize(writer: Writer, codes: fx.Node, grid: AnyGrid | None) -> fx.Node:
    """The float32 values that codes stand for."""
    assert grid is not None
    if not writer.reads_bytes and _is_rounded_here(codes):
        full = codes.args[0]
    else:
        full = writer.call(aten._to_copy.default, codes, dtype=torch.float32, name="dequantize")
    if grid.zero_point:
        full = writer.call(aten.sub.Tensor, full, float(grid.zero_point))
    if isinstance(grid, ChannelGrid):
        scales = writer.constant("scales", grid.broadcast(grid.scales))
        return writer.call(aten.mul.Tensor, full, scales)
    return writer.call(aten.mul.Tensor, full, grid.scale)


def _is_rounded_here(codes: fx.Node) -> bool:
    """Whether they are what :func:`quantize` gives: behind it stands the same in float32."""
    return codes.target is aten._to_copy.default and codes.kwargs.get("dtype") is torch.uint8
