"""Convolutions whose windows overlap, as matrix products, where their result stays in float.

ONNX Runtime's integer kernel of Conv gives integers, that of Gemm floats as well. What a window
sees is gathered as bytes, so the copies are small beside a convolution in float.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import Array, Rewriter, given, producer_of, rank_of, sizes_of
from fxopt_onnxruntime.grids import dequantized, grid_of, grid_of_node, rounding_of
from fxopt_onnxruntime.rules.gemm import replace_by_product, reshaped
from fxopt_onnxruntime.weights import Weight, bias_of, weight_of

if TYPE_CHECKING:
    import onnx_ir as ir

# Each byte that is gathered must be multiplied often enough to pay for its copy, and copied along
# with enough of its neighbours.
_FEWEST_OUTPUTS = 32
_FEWEST_CHANNELS = 16

# What windows see overlaps, so that it takes more memory than the input: at most this for a sample.
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class _Windows:
    """The geometry of a convolution; one number for each dimension.

    Attributes:
        kernel: How many values a window sees.
        strides: The distance between windows.
        dilations: The distance between the values that a window sees.
        pads: Zeros in front of the first and behind the last value, as ONNX orders them.
        sizes: How many values there are.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def padded(self) -> list[int]:
        """How many values there are, zeros included."""
        front, back = self.pads[: len(self.sizes)], self.pads[len(self.sizes) :]
        return [sum(each) for each in zip(self.sizes, front, back, strict=True)]

    @property
    def positions(self) -> list[int]:
        """How many windows there are."""
        each = zip(self.padded, self.kernel, self.strides, self.dilations, strict=True)
        return [(size - gap * (width - 1) - 1) // stride + 1 for size, width, stride, gap in each]

    def places(self) -> Array:
        """Where each window, a row, finds its values when all dimensions are flattened to one."""
        index = np.arange(math.prod(self.padded), dtype=np.int32).reshape(self.padded)
        rank = len(self.sizes)
        spans = [
            gap * (width - 1) + 1 for width, gap in zip(self.kernel, self.dilations, strict=True)
        ]
        views = np.lib.stride_tricks.sliding_window_view(index, spans)
        steps = (*self.strides, *self.dilations)
        views = views[tuple(slice(None, None, step) for step in steps)]
        return views.reshape(math.prod(views.shape[:rank]), -1)


def lower_window_convolutions(rewriter: Rewriter) -> None:
    """Turns convolutions with many channels whose result stays in float into Gemm."""
    for node in rewriter.nodes("Conv"):
        rounding = rounding_of(node.outputs[0])
        rounds = rounding is not None and grid_of_node(rounding) is not None
        windows, weight, bias = _windows(node), weight_of(node.inputs[1]), bias_of(node)
        if rounds or windows is None or weight is None or bias is None:
            continue
        if grid_of(node.inputs[0]) is not None and _pays(weight, windows):
            rows = _rows(rewriter, node, windows)
            flat = _channels_last(weight)
            replace_by_product(rewriter, node, rows, windows.positions, flat, bias)


def _pays(weight: Weight, windows: _Windows) -> bool:
    outputs, seen = len(weight.values), weight.values[0].size
    many = outputs >= _FEWEST_OUTPUTS and len(weight.values[0]) >= _FEWEST_CHANNELS
    return many and math.prod(windows.positions) * seen <= _MOST_BYTES


def _channels_last(weight: Weight) -> Weight:
    values = np.moveaxis(weight.values, 1, -1).reshape(len(weight.values), -1)
    return replace(weight, values=values, source=None)


def _windows(node: ir.Node) -> _Windows | None:
    """None where channels are grouped or a size is known at run time only."""
    if rank_of(node.inputs[0]) is None or node.attributes["group"].as_int() != 1:
        return None
    kernel = tuple(node.attributes["kernel_shape"].as_ints())
    sizes = sizes_of(given(node))[2:]
    known = tuple(size for size in sizes if size is not None)
    if len(known) < len(sizes):
        return None
    strides, dilations = _numbers(node, "strides", 1), _numbers(node, "dilations", 1)
    return _Windows(kernel, strides, dilations, _numbers(node, "pads", 0, times=2), known)


def _numbers(node: ir.Node, name: str, default: int, times: int = 1) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    if attribute is None:
        return (default,) * (len(node.attributes["kernel_shape"].as_ints()) * times)
    return tuple(attribute.as_ints())


def _rows(rewriter: Rewriter, node: ir.Node, windows: _Windows) -> ir.Value:
    """A matrix with a row for each window: the channels of its first value, of its second..."""
    value, rank = _padded(rewriter, node, windows), len(windows.kernel)
    channels = sizes_of(given(node))[1]
    assert channels is not None
    value = rewriter.insert(node, "Transpose", value, perm=[0, *range(2, rank + 2), 1])
    sizes, places = windows.padded, windows.places()
    if rank > 1:
        value = reshaped(rewriter, node, value, -1, math.prod(sizes), channels)
    seen = rewriter.insert(node, "Gather", value, rewriter.constant(places), axis=1)
    return reshaped(rewriter, node, seen, -1, places.shape[1] * channels)


def _padded(rewriter: Rewriter, node: ir.Node, windows: _Windows) -> ir.Value:
    """The input of a convolution with its zeros around it: padded as integers."""
    value, grid = given(node), grid_of(node.inputs[0])
    pair = producer_of(value, "DequantizeLinear")
    assert grid is not None
    assert pair is not None
    if not any(windows.pads):
        return value
    front, back = np.split(np.array(windows.pads), 2)
    pads = np.array([0, 0, *front, 0, 0, *back], np.int64)
    zero = np.array(grid.zero_point, np.uint8)
    constants = rewriter.constant(pads), rewriter.constant(zero)
    integers = rewriter.insert(node, "Pad", given(pair), *constants)
    return dequantized(rewriter, node, integers, grid)
