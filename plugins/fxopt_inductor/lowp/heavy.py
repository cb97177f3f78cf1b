"""The operations that hold nearly all of a network's arithmetic."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import fx

from fxopt.plugin import Kernel
from fxopt_inductor.lowp.constants import owner_name
from fxopt_inductor.lowp.moves import moved

aten = torch.ops.aten

KINDS: dict[Any, str] = {
    aten.conv1d.default: "Convolution",
    aten.conv1d.padding: "Convolution",
    aten.conv2d.default: "Convolution",
    aten.conv2d.padding: "Convolution",
    aten.conv3d.default: "Convolution",
    aten.conv3d.padding: "Convolution",
    aten.conv_transpose1d.default: "Convolution",
    aten.conv_transpose2d.input: "Convolution",
    aten.conv_transpose3d.input: "Convolution",
    aten.linear.default: "MatMul",
    aten.matmul.default: "MatMul",
    aten.mm.default: "MatMul",
    aten.bmm.default: "MatMul",
    aten.addmm.default: "MatMul",
    aten.baddbmm.default: "MatMul",
    aten.einsum.default: "MatMul",
    aten.scaled_dot_product_attention.default: "Attention",
}
"""What can be computed in bfloat16 as well."""

# What is computed in bfloat16 where all that it takes is: then it can be fused with the convolution
# or product before it, and a sum that several take is not stored in float32 as well.
_FOLLOWING = {
    aten.add.Tensor,
    aten.mul.Tensor,
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.sigmoid.default,
    aten.silu.default,
    aten.gelu.default,
    aten.leaky_relu.default,
    aten.elu.default,
    aten.tanh.default,
    aten.mean.dim,
    aten.adaptive_avg_pool2d.default,
}

# Products of two activations.
_PRODUCTS = {
    aten.scaled_dot_product_attention.default,
    aten.matmul.default,
    aten.bmm.default,
    aten.baddbmm.default,
}
_RECURRENT = {aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input}

_PRECISIONS = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}


def kernel_of(node: fx.Node, bf16: bool = False) -> Kernel | None:
    """What a float operation is listed as; None when it is not heavy.

    Args:
        node: A node of an exported graph.
        bf16: Whether it is computed in bfloat16.
    """
    kind = "Recurrent" if node.target in _RECURRENT else KINDS.get(node.target)
    if kind is None:
        return None
    value: Any = node.meta.get("val")
    if value is None:
        return None
    dtype = (value[0] if isinstance(value, (tuple, list)) else value).dtype
    precision = "bf16" if bf16 else _PRECISIONS.get(dtype, str(dtype).removeprefix("torch."))
    return Kernel(_name(node), kind, precision)


def takes_bf16(node: fx.Node) -> bool:
    """Whether an operation is heavy, in float32 and known to take bfloat16."""
    if node.target not in KINDS and node.target not in _RECURRENT:
        return False
    value: Any = node.meta.get("val")
    first = value[0] if isinstance(value, (tuple, list)) else value
    return bool(first.dtype is torch.float32)


def follows_in_bf16(node: fx.Node) -> bool:
    """Whether a light operation is computed in bfloat16 where all that it takes is."""
    value: Any = node.meta.get("val")
    floats = isinstance(value, torch.Tensor) and value.dtype is torch.float32
    return node.target in _FOLLOWING and floats and node.kwargs.get("dtype") is None


def only_for_products(node: fx.Node) -> bool:
    """Whether a node rounds values that nothing but float products of activations takes.

    There are no int8 kernels for attention, so rounding what it takes costs time and precision
    and gains nothing.
    """
    if node.target is not aten.fake_quantize_per_tensor_affine.default:
        return False
    waiting, seen = list(node.users), set[fx.Node]()
    while waiting:
        user = waiting.pop()
        if user.target in _PRODUCTS or user in seen:
            continue
        if user.op != "call_function" or moved(user) is None:
            return False
        seen.add(user)
        waiting += user.users
    return bool(node.users)


def _name(node: fx.Node) -> str:
    """The qualified name of the layer that a node computes, or that of the node."""
    waiting = deque(arg for arg in node.args[1:] if isinstance(arg, fx.Node))
    while waiting:
        arg = waiting.popleft()
        if arg.op == "get_attr":
            return owner_name(arg) or node.name
        if all(source.op == "get_attr" for source in arg.all_input_nodes):
            waiting.extend(arg.all_input_nodes)
    return node.name
