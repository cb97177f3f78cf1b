"""What each operation means to quantization: a table of roles, from which placement follows."""

from __future__ import annotations

import operator
from enum import Enum
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Program

aten = torch.ops.aten


class Role(Enum):
    """The part that an operation plays between quantized ones."""

    LAYER = "has weights; always computes in int8, unless refused"
    COMBINE = "computes in int8 where its result is wanted in int8; rounds each input"
    PASS = "only moves or selects values: the rounding of its input serves its output too"
    ATTEND = "computes in int8 where queries and keys come from int8 layers"
    JOIN = "moves values of several inputs into one output, so they share one scale"
    ACTIVATE = "runs inside the operation before it: the rounding comes after it"
    FLOAT = "stays in float"


ROLES: dict[Any, Role] = {
    # -- layers
    nn.Conv1d: Role.LAYER,
    nn.Conv2d: Role.LAYER,
    nn.Conv3d: Role.LAYER,
    nn.ConvTranspose1d: Role.LAYER,
    nn.ConvTranspose2d: Role.LAYER,
    nn.ConvTranspose3d: Role.LAYER,
    nn.Linear: Role.LAYER,
    # -- attention
    aten.scaled_dot_product_attention.default: Role.ATTEND,
    # -- sums and products of activations, and averages
    aten.add.Tensor: Role.COMBINE,
    aten.sub.Tensor: Role.COMBINE,
    aten.mul.Tensor: Role.COMBINE,
    aten.mean.dim: Role.COMBINE,
    aten.avg_pool1d.default: Role.COMBINE,
    aten.avg_pool2d.default: Role.COMBINE,
    aten.avg_pool3d.default: Role.COMBINE,
    aten.adaptive_avg_pool1d.default: Role.COMBINE,
    aten.adaptive_avg_pool2d.default: Role.COMBINE,
    aten.adaptive_avg_pool3d.default: Role.COMBINE,
    nn.AvgPool1d: Role.COMBINE,
    nn.AvgPool2d: Role.COMBINE,
    nn.AvgPool3d: Role.COMBINE,
    nn.AdaptiveAvgPool1d: Role.COMBINE,
    nn.AdaptiveAvgPool2d: Role.COMBINE,
    nn.AdaptiveAvgPool3d: Role.COMBINE,
    # -- values pass through unchanged
    aten.max_pool1d.default: Role.PASS,
    aten.max_pool2d.default: Role.PASS,
    aten.max_pool3d.default: Role.PASS,
    aten.adaptive_max_pool2d.default: Role.PASS,
    aten.view.default: Role.PASS,
    aten.reshape.default: Role.PASS,
    aten.flatten.using_ints: Role.PASS,
    aten.unflatten.int: Role.PASS,
    aten.squeeze.default: Role.PASS,
    aten.squeeze.dim: Role.PASS,
    aten.squeeze.dims: Role.PASS,
    aten.unsqueeze.default: Role.PASS,
    aten.permute.default: Role.PASS,
    aten.transpose.int: Role.PASS,
    aten.contiguous.default: Role.PASS,
    aten.clone.default: Role.PASS,
    aten.alias.default: Role.PASS,
    aten.expand.default: Role.PASS,
    aten.slice.Tensor: Role.PASS,
    aten.select.int: Role.PASS,
    aten.chunk.default: Role.PASS,
    aten.split.Tensor: Role.PASS,
    aten.split_with_sizes.default: Role.PASS,
    aten.unbind.int: Role.PASS,
    operator.getitem: Role.PASS,
    aten.channel_shuffle.default: Role.PASS,
    aten.pixel_shuffle.default: Role.PASS,
    aten.pixel_unshuffle.default: Role.PASS,
    aten.upsample_nearest2d.vec: Role.PASS,
    nn.MaxPool1d: Role.PASS,
    nn.MaxPool2d: Role.PASS,
    nn.MaxPool3d: Role.PASS,
    nn.Flatten: Role.PASS,
    nn.Unflatten: Role.PASS,
    nn.Identity: Role.PASS,
    nn.Dropout: Role.PASS,
    nn.Dropout1d: Role.PASS,
    nn.Dropout2d: Role.PASS,
    nn.Dropout3d: Role.PASS,
    nn.PixelShuffle: Role.PASS,
    nn.ChannelShuffle: Role.PASS,
    # -- and so they do among zeros; padding with another constant stays in float
    aten.pad.default: Role.PASS,
    aten.constant_pad_nd.default: Role.PASS,
    aten.reflection_pad1d.default: Role.PASS,
    aten.reflection_pad2d.default: Role.PASS,
    aten.reflection_pad3d.default: Role.PASS,
    aten.replication_pad1d.default: Role.PASS,
    aten.replication_pad2d.default: Role.PASS,
    aten.replication_pad3d.default: Role.PASS,
    nn.ConstantPad1d: Role.PASS,
    nn.ConstantPad2d: Role.PASS,
    nn.ConstantPad3d: Role.PASS,
    nn.ReflectionPad1d: Role.PASS,
    nn.ReflectionPad2d: Role.PASS,
    nn.ReflectionPad3d: Role.PASS,
    nn.ReplicationPad1d: Role.PASS,
    nn.ReplicationPad2d: Role.PASS,
    nn.ReplicationPad3d: Role.PASS,
    # -- values of several inputs side by side
    aten.cat.default: Role.JOIN,
    aten.stack.default: Role.JOIN,
    # -- element by element, after another operation
    aten.relu.default: Role.ACTIVATE,
    aten.relu6.default: Role.ACTIVATE,
    aten.hardtanh.default: Role.ACTIVATE,
    aten.clamp.default: Role.ACTIVATE,
    aten.leaky_relu.default: Role.ACTIVATE,
    aten.elu.default: Role.ACTIVATE,
    aten.gelu.default: Role.ACTIVATE,
    aten.silu.default: Role.ACTIVATE,
    aten.mish.default: Role.ACTIVATE,
    aten.sigmoid.default: Role.ACTIVATE,
    aten.tanh.default: Role.ACTIVATE,
    aten.hardswish.default: Role.ACTIVATE,
    aten.hardsigmoid.default: Role.ACTIVATE,
    nn.ReLU: Role.ACTIVATE,
    nn.ReLU6: Role.ACTIVATE,
    nn.Hardtanh: Role.ACTIVATE,
    nn.LeakyReLU: Role.ACTIVATE,
    nn.ELU: Role.ACTIVATE,
    nn.GELU: Role.ACTIVATE,
    nn.SiLU: Role.ACTIVATE,
    nn.Mish: Role.ACTIVATE,
    nn.Sigmoid: Role.ACTIVATE,
    nn.Tanh: Role.ACTIVATE,
    nn.Hardswish: Role.ACTIVATE,
    nn.Hardsigmoid: Role.ACTIVATE,
    nn.PReLU: Role.ACTIVATE,
}


_CONSTANT_PADDING = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)


def role_of(program: Program, node: fx.Node) -> Role:
    """The role of an operation; a subclass of a module in the table has the role of its base."""
    if node.op not in ("call_function", "call_module") or _padding_value(program, node) != 0:
        return Role.FLOAT
    if node.op == "call_function":
        return ROLES.get(node.target, Role.FLOAT)
    bases = type(program.leaf(node)).__mro__
    return next((ROLES[base] for base in bases if base in ROLES), Role.FLOAT)


def layers_of(program: Program) -> list[fx.Node]:
    """The operations that are layers."""
    return [node for node in program.nodes if role_of(program, node) is Role.LAYER]


def operands(node: fx.Node) -> list[fx.Node]:
    """The inputs that a node can take in int8: floats, and not the mask of an attention."""
    sources = node.all_input_nodes
    if ROLES.get(node.target) is Role.ATTEND:
        sources = [arg for arg in node.args[:3] if isinstance(arg, fx.Node)]
    return [source for source in sources if holds_floats(source)]


def _padding_value(program: Program, node: fx.Node) -> object:
    """The constant that a node pads with; 0 where it does not, which every grid has."""
    if node.op == "call_module":
        leaf = program.leaf(node)
        return leaf.value if isinstance(leaf, _CONSTANT_PADDING) else 0
    if node.target is aten.pad.default and _argument(node, 2, "mode", "constant") == "constant":
        return _argument(node, 3, "value", None) or 0
    if node.target is aten.constant_pad_nd.default:
        return _argument(node, 2, "value", 0)
    return 0


def _argument(node: fx.Node, index: int, name: str, default: object) -> object:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def holds_floats(node: fx.Node) -> bool:
    """Whether a node yields floats: a tensor of them, or a tuple of such tensors."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        return bool(value) and all(_is_float(item) for item in value)
    return _is_float(value)


def _is_float(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
