"""Which values reach an output of the model, as they are."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Program, is_aten

aten = torch.ops.aten

_MOVING = {  # besides those whose results share memory with what they take
    operator.getitem,
    aten.cat.default,
    aten.stack.default,
    aten.clone.default,
    aten._to_copy.default,
    aten.dropout.default,
    aten.type_as.default,
    aten.flip.default,
    aten.roll.default,
    aten.repeat.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.gather.default,
}

_DROPOUTS = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout,
)  # fmt: skip


def yields_output(program: Program, node: fx.Node) -> bool:
    """Whether values of a node are outputs, perhaps in other places or of another dtype."""
    pending, seen = [node], {node}
    while pending:
        users = set(pending.pop().users) - seen
        if any(user.op == "output" for user in users):
            return True
        seen |= users
        pending += [user for user in users if _moves(program, user)]
    return False


def _moves(program: Program, node: fx.Node) -> bool:
    """Whether all that a node does is to move values, outside of training."""
    if node.op == "call_module":
        return type(program.leaf(node)) in _DROPOUTS
    return node.target in _MOVING or _may_be_view(node.target)


def _may_be_view(target: Any) -> bool:
    """Whether an operator's result may share memory with what it takes: then it computes nothing.

    That holds of ``reshape`` and ``to`` as of ``squeeze``, ``slice`` and ``permute``.
    """
    if not is_aten(target):
        return False
    return any(each.alias_info is not None for each in target._schema.returns)
