"""Convolutions whose windows overlap, as matrix products, where their result stays in float.

ONNX Runtime's integer kernel of Conv gives integers, that of Gemm floats as well. What a window
sees is gathered as bytes, so the copies are small beside a convolution in float.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fxopt_onnxruntime.graph import Rewriter, given, producer_of, rank_of, sizes_of
from fxopt_onnxruntime.grids import dequantized, grid_of, grid_of_node, rounding_of
from fxopt_onnxruntime.rules.gemm import replace_by_product, reshaped
from fxopt_onnxruntime.weights import Weight, bias_of, weight_of

if TYPE_CHECKING:
    import onnx_ir as ir

# Each byte that is gathered must be multiplied often enough to pay for its copy, and copied along
# with enough of its neighbours.
_FEWEST_OUTPUTS = 32
_FEWEST_CHANNELS = 16


@dataclass(frozen=True)
class _Windows:
    """The geometry of a convolution; one number for each dimension.

    Attributes:
        kernel: How many values a window sees.
        strides: The distance between windows.
        dilations: The distance between the values that a window sees.
        pads: Zeros in front of the first and behind the last value, as ONNX orders them.
        positions: How many windows there are.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    positions: tuple[int, ...]


def lower_window_convolutions(rewriter: Rewriter) -> None:
    """Turns convolutions with many channels whose result stays in float into Gemm."""
    for node in rewriter.nodes("Conv"):
        rounding = rounding_of(node.outputs[0])
        rounds = rounding is not None and grid_of_node(rounding) is not None
        windows, weight, bias = _windows(node), weight_of(node.inputs[1]), bias_of(node)
        if rounds or windows is None or weight is None or bias is None or not _pays(weight):
            continue
        if grid_of(node.inputs[0]) is not None:
            rows = _rows(rewriter, node, windows)
            flat = _channels_last(weight)
            replace_by_product(rewriter, node, rows, list(windows.positions), flat, bias)


def _pays(weight: Weight) -> bool:
    outputs, channels = weight.values.shape[:2]
    return bool(outputs >= _FEWEST_OUTPUTS and channels >= _FEWEST_CHANNELS)


def _channels_last(weight: Weight) -> Weight:
    values = np.moveaxis(weight.values, 1, -1).reshape(len(weight.values), -1)
    return replace(weight, values=values, source=None)


def _windows(node: ir.Node) -> _Windows | None:
    """None where channels are grouped or a size is known at run time only."""
    if rank_of(node.inputs[0]) is None or node.attributes["group"].as_int() != 1:
        return None
    kernel = tuple(node.attributes["kernel_shape"].as_ints())
    sizes = sizes_of(given(node))[2:]
    strides, dilations = _numbers(node, "strides", 1), _numbers(node, "dilations", 1)
    pads = _numbers(node, "pads", 0, times=2)
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    ends = zip(known, kernel, strides, dilations, pads, pads[len(kernel) :], strict=False)
    positions = [
        (size + front + back - gap * (width - 1) - 1) // stride + 1
        for size, width, stride, gap, front, back in ends
    ]
    return _Windows(kernel, strides, dilations, pads, tuple(positions))


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
    last = rewriter.insert(node, "Transpose", value, perm=[0, *range(2, rank + 2), 1])
    offsets = itertools.product(*(range(width) for width in windows.kernel))
    seen = [_seen(rewriter, node, last, windows, offset) for offset in offsets]
    joined = rewriter.insert(node, "Concat", *seen, axis=-1)
    return reshaped(rewriter, node, joined, -1, len(seen) * channels)


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


def _seen(
    rewriter: Rewriter, node: ir.Node, value: ir.Value, windows: _Windows, offset: tuple[int, ...]
) -> ir.Value:
    """What all windows see at one place of them, channels last."""
    starts = [at * gap for at, gap in zip(offset, windows.dilations, strict=True)]
    ends = [
        start + (count - 1) * stride + 1
        for start, count, stride in zip(starts, windows.positions, windows.strides, strict=True)
    ]
    axes = range(1, len(starts) + 1)
    bounds = (np.array(list(each), np.int64) for each in (starts, ends, axes, windows.strides))
    return rewriter.insert(node, "Slice", value, *(rewriter.constant(each) for each in bounds))
