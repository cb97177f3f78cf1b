"""Int8 linear layers whose input is rounded row by row, on each call."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from fxopt_inductor.lowp.calls import first_argument
from fxopt_inductor.lowp.grid import Grid
from fxopt_inductor.lowp.layers import QuantLayer
from fxopt_inductor.lowp.operations import Layer, Result
from fxopt_inductor.lowp.writer import Writer

aten = torch.ops.aten

_LIMIT = 127
_MIDDLE = 128


def rounded_rows(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The whole numbers of a row and their scale, if that is how a node's value is written.

    Args:
        node: Any node; what is looked for is ``clamp(round(x / scale), -127, 127) * scale``, with
            a scale for each row.
    """
    if node.target is not aten.mul.Tensor:
        return None
    codes, scale = node.args
    rounded = first_argument(codes, (aten.clamp.default,), -_LIMIT, _LIMIT)
    quotient = first_argument(rounded, (aten.round.default,))
    if not isinstance(quotient, fx.Node) or not isinstance(scale, fx.Node):
        return None
    divided = quotient.target is aten.div.Tensor and quotient.args[1] is scale
    if not divided or not isinstance(codes, fx.Node):
        return None
    by_row = scale.meta["val"].shape == (*node.meta["val"].shape[:-1], 1)
    return (codes, scale) if by_row else None


def write_rows(
    writer: Writer, layer: QuantLayer, codes: fx.Node, scale: fx.Node, shape: torch.Size
) -> fx.Node:
    """Writes a linear layer on whole numbers.

    Args:
        writer: Where to.
        layer: What it computes.
        codes: Its input in units of ``scale``, in float.
        scale: Of each row.
        shape: Of the input.
    """
    # unsigned, as the kernels like it; what that adds to the sums goes to a bias per output
    raised = writer.call(aten.add.Tensor, codes, float(_MIDDLE))
    unsigned = writer.call(aten._to_copy.default, raised, dtype=torch.uint8, name="quantize")
    plain = Layer.of(replace(layer, bias=None), unsigned, shape, Grid(1.0, _MIDDLE))
    result = writer.call(aten.mul.Tensor, plain.write(writer, Result(), True, None), scale)
    if layer.bias is None:
        return result
    bias = writer.constant(f"{layer.name}_bias", layer.bias)
    return writer.call(aten.add.Tensor, result, bias)
