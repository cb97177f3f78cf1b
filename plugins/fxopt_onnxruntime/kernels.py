"""What a session of ONNX Runtime really runs: read from its profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fxopt.plugin import Kernel

# What operators with nearly all of a network's arithmetic compute, in the words of all backends.
_KINDS = {
    "Conv": "Convolution", "FusedConv": "Convolution", "QLinearConv": "Convolution",
    "ConvInteger": "Convolution", "ConvTranspose": "Deconvolution",
    "Gemm": "MatMul", "FusedGemm": "MatMul", "QGemm": "MatMul",
    "MatMul": "MatMul", "FusedMatMul": "MatMul", "QLinearMatMul": "MatMul",
    "MatMulInteger": "MatMul", "MatMulIntegerToFloat": "MatMul", "DynamicQuantizeMatMul": "MatMul",
    "Attention": "Attention", "MultiHeadAttention": "Attention",
    "LSTM": "RNNSeq", "DynamicQuantizeLSTM": "RNNSeq", "GRU": "RNNSeq", "RNN": "RNNSeq",
}  # fmt: skip

_PRODUCT = "BatchMatMul"  # of two activations, as in attention; a linear layer has weights

HEAVY = frozenset({*_KINDS.values(), _PRODUCT})
"""Kinds of operations that hold nearly all of a network's arithmetic."""

CONVOLUTION = "convolution"
"""Ends the names of matrix products that a convolution has become."""

# Operators that move, name or convert data instead of computing it.
_MOVING = frozenset(
    {"Constant", "ConstantOfShape", "Identity", "Reshape", "Flatten", "Transpose", "Squeeze",
     "Unsqueeze", "Concat", "QLinearConcat", "Split", "Slice", "Gather", "Expand", "Tile",
     "Shape", "Size", "Cast", "Pad", "QuantizeLinear", "DequantizeLinear", "ReorderInput",
     "ReorderOutput", "MemcpyFromHost", "MemcpyToHost", "DepthToSpace", "SpaceToDepth"}
)  # fmt: skip

_PRECISIONS = {
    "uint8": "int8", "int8": "int8", "float": "f32", "bfloat16": "bf16", "float16": "f16",
    "double": "f64",
}  # fmt: skip

_ROUNDING = "DynamicQuantize"  # operators that take floats and compute on integers
_SUFFIX = "_kernel_time"

Event = Mapping[str, Any]


def find_kernels(profile: Iterable[Event]) -> tuple[Kernel, ...]:
    """The operations in a profile that compute something, each once, in the order they ran.

    The name is that of the runtime's operator, such as ``QLinearConv``, and of the node. The
    precision is that of the first operand: integer kernels take the activations there, but for
    those that round them.

    Args:
        profile: Events as ``InferenceSession.end_profiling`` writes them.
    """
    found: dict[str, Kernel] = {}
    for event in profile:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            kernel = _kernel(name.removesuffix(_SUFFIX), event["args"])
            found.setdefault(kernel.name, kernel)
    return tuple(kernel for kernel in found.values() if kernel.kind not in _MOVING)


def _kernel(name: str, details: Event) -> Kernel:
    operator = str(details["op_name"])
    operands = details.get("input_type_shape") or details.get("output_type_shape") or [{}]
    dtype = next(iter(operands[0]), "unknown")
    kind = _kind(name, operator, details)
    rounds = operator.startswith(_ROUNDING)
    return Kernel(f"{operator} {name}", kind, "int8" if rounds else _PRECISIONS.get(dtype, dtype))


def _kind(name: str, operator: str, details: Event) -> str:
    kind = _KINDS.get(operator, operator)
    if kind != "MatMul":
        return kind
    if name.endswith(CONVOLUTION):
        return "Convolution"
    # Weights that were packed beforehand are no operands any more; others count as parameters.
    operands = len(details.get("input_type_shape", ()))
    is_product = operator.endswith(("MatMul", "ToFloat")) and operands > 1
    return _PRODUCT if is_product and details.get("parameter_size") == "0" else kind
