"""What a compiled model of OpenVINO really runs: read back from the runtime."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fxopt.plugin import Kernel

if TYPE_CHECKING:
    import openvino

HEAVY = frozenset(
    {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNSeq", "RNNCell",
     "ScaledDotProductAttention", "ScaledAttn", "MHA", "LLMMLP", "QKVProjection"}
)  # fmt: skip
"""Layer types that hold nearly all of a network's arithmetic."""

# Layer types that move or name data instead of computing it.
_MOVING = frozenset(
    {"Const", "Input", "Output", "Parameter", "Result", "Reorder", "Reshape", "Transpose",
     "Gather", "Split", "Concatenation", "StridedSlice", "Squeeze", "Unsqueeze", "Tile",
     "Broadcast", "ShapeOf", "Convert", "FakeQuantize", "Pad"}
)  # fmt: skip

_PRECISIONS = {
    "u8": "int8", "i8": "int8", "f32": "f32", "bf16": "bf16", "f16": "f16", "i32": "int32",
    "u4": "int4", "i4": "int4",
}  # fmt: skip


_FLOATS = {"f32", "bf16", "f16"}
_STORED = {"int8", "bf16", "f16"}  # what weights may be stored in, and multiplied in as well


def find_kernels(runtime_model: openvino.Model, rounds: bool = False) -> tuple[Kernel, ...]:
    """The layers of a runtime model that compute something.

    The runtime orders branches as it likes, so layers of a kind are put in the order of the numbers
    that end the names of the operations they were translated from (``conv2d_3/...``).

    Args:
        runtime_model: ``CompiledModel.get_runtime_model()``.
        rounds: Whether layers round what they take to int8 as they multiply, where their weights
            are stored in few bits.
    """
    kernels = [
        Kernel(node.get_friendly_name(), _text(node, "layerType"), _precision(node, rounds))
        for node in runtime_model.get_ordered_ops()
    ]
    kept = [kernel for kernel in kernels if kernel.kind not in _MOVING]
    return tuple(sorted(kept, key=_position))


def _position(kernel: Kernel) -> tuple[str, int]:
    origin = re.match(r"(.*?)(?:_(\d+))?(?:/|$)", kernel.name)
    assert origin is not None  # every part of the pattern may be empty
    return origin[1], int(origin[2] or 0)


def _precision(node: openvino.Node, rounds: bool) -> str:
    """What a layer computes in.

    The runtime names the precision of the weights, even if it multiplies them in float.
    """
    precision = _named(_text(node, "runtimePrecision"))
    if precision not in _STORED or rounds or not node.get_input_size():
        return precision
    source = node.input_value(0)
    given = _text(source.get_node(), "outputPrecisions").split(",")
    taken = _named(given[source.get_index()] if source.get_index() < len(given) else "")
    return taken if taken in _FLOATS else precision


def _named(precision: str) -> str:
    return _PRECISIONS.get(precision.lower(), precision.lower())


def _text(node: openvino.Node, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else "unknown"
