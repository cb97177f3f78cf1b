"""Operations on each element: what meets at a position goes together."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxopt.plugin import Program, is_aten
from fxopt_prune.channels.atoms import Labels, is_free
from fxopt_prune.channels.rules.registry import rule
from fxopt_prune.channels.trace import Call, Dims, Rule

aten = torch.ops.aten

_UNTAGGED = {  # torch does not tag all of them
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.hardtanh.default,
    aten.relu6.default,
    aten.silu.default,
    aten.mish.default,
    aten.elu.default,
    aten.celu.default,
    aten.selu.default,
    aten.gelu.default,
    aten.leaky_relu.default,
    aten.softplus.default,
    aten.log_sigmoid.default,
    aten.threshold.default,
    aten.feature_dropout.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.detach.default,
    aten.alias.default,
    aten.dropout.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten._to_copy.default,
    aten.type_as.default,
    aten.lift_fresh_copy.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.where.ScalarSelf,
    aten.where.ScalarOther,
    aten.where.Scalar,
    aten.expand_as.default,  # nothing but the broadcast
}


def pointwise_rule(program: Program, node: fx.Node) -> Rule | None:
    """The rule of this file, where it applies."""
    if node.op == "call_module":
        return together if _is_identity(program.leaf(node), node) else None
    target: Any = node.target
    if not is_aten(target):
        return None
    tagged = torch.Tag.pointwise in target.tags and "self" in target._schema.arguments[0].name
    return together if tagged or target in _UNTAGGED else None


@rule(
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.ReLU,
    nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.Sigmoid, nn.Tanh,
    nn.LogSigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Hardshrink, nn.LeakyReLU,
    nn.Softplus, nn.Softsign, nn.Softshrink, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
def together(call: Call) -> Dims:
    """Broadcasts all tensors against each other."""
    trace = call.trace
    tensors = [trace.values[arg] for arg in call.node.all_input_nodes]
    return broadcast(call, [dims for dims in tensors if isinstance(dims, tuple)])


def broadcast(call: Call, tensors: list[Dims]) -> Dims:
    """The labels of what some tensors make together, aligned at their last dimensions."""
    rank = max(map(len, tensors))
    columns = [[dims[i] for dims in tensors if len(dims) >= -i] for i in range(-rank, 0)]
    return tuple(_meet(call, labels) for labels in columns)


def _meet(call: Call, labels: list[Labels]) -> Labels:
    """One dimension; those of size 1 are repeated."""
    size = max(map(len, labels))
    full = [each for each in labels if len(each) == size]
    for other in full[1:]:
        call.couple(full[0], other)
    return next(filter(is_free, full), full[0])


def _is_identity(leaf: nn.Module, node: fx.Node) -> bool:
    """Whether a leaf without weights hands on what it gets, outside of training.

    Layers that only drop something in training stay in programs, whatever their class.
    """
    if leaf.training or len(node.all_input_nodes) != 1:
        return False
    if any(True for _ in leaf.parameters()) or any(True for _ in leaf.buffers()):
        return False
    value = node.all_input_nodes[0].meta["val"]
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return False
    probe = torch.from_numpy(np.linspace(-3, 3, 2 ** value.dim())).reshape([2] * value.dim())
    return _gives_back(leaf, probe)


def _gives_back(leaf: nn.Module, probe: torch.Tensor) -> bool:
    try:
        with torch.no_grad():
            return torch.equal(leaf(probe.clone()), probe)
    except (RuntimeError, TypeError, ValueError):
        return False  # it wants other sizes: then it does more than that


@rule(nn.PReLU)
def prelu(call: Call) -> Dims:
    """A slope for each channel, or one for all."""
    x, slopes = call.first(), call.trace.weight(call.leaf.weight)[0]
    if len(slopes) > 1:
        call.couple(x[1], slopes)
    return x
