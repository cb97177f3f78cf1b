"""Removal itself: one rewrite, since half of it would leave sizes that do not fit."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from fxopt.plugin import Edit, Program
from fxopt_prune.channels import Structure
from fxopt_prune.channels.rules import Smaller, resize_of
from fxopt_prune.channels.trace import Call, Dims
from fxopt_prune.shrink.layers import set_sizes


def remove(
    program: Program, edit: Edit, structure: Structure, units: Collection[int], what: str
) -> bool:
    """Removes units from a program, for good.

    Args:
        program: The program, whose weights change.
        edit: An edit of it that is open.
        structure: What :func:`find_groups` has found in it, as it is now.
        units: The classes to remove; of each group some must stay.
        what: The rewrite in words.

    Returns:
        Whether that was permitted.
    """
    gone = structure.gone(units)
    with edit.together(what) as permitted:
        if not permitted or not len(units):
            return False
        calls = {node: Call(structure.trace, node) for node in program.nodes}
        smaller = {
            node: Smaller(call, lambda labels: ~gone[labels]) for node, call in calls.items()
        }
        _shrink_weights(program, structure, lambda labels: ~gone[labels])
        for node in program.nodes:
            if node.op in ("get_attr", "call_module"):
                _set_leaf(program, edit, node, smaller[node])
            elif node.op == "call_function" and node not in structure.barriers:
                _set_call(program, edit, node, smaller[node])
        return True


def _shrink_weights(program: Program, structure: Structure, stays: Any) -> None:
    """Puts smaller tensors where the old ones were; those that were tied stay so."""
    new = {
        key: _taken(tensor, dims, stays) for key, (tensor, dims) in structure.trace.weights.items()
    }
    for module in program.module.modules():
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if id(tensor) in new and new[id(tensor)] is not tensor:
                setattr(module, name, new[id(tensor)])


def _taken(tensor: torch.Tensor, dims: Dims, stays: Any) -> torch.Tensor:
    """The positions of a tensor that are left; itself where all are."""
    masks = [stays(labels) for labels in dims]
    if all(mask.all() for mask in masks):
        return tensor
    taken = tensor.detach()
    for dim, mask in enumerate(masks):
        taken = taken.index_select(dim, torch.from_numpy(np.flatnonzero(mask)).to(tensor.device))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(taken, requires_grad=tensor.requires_grad)
    return taken


def _set_leaf(program: Program, edit: Edit, node: fx.Node, smaller: Smaller) -> None:
    if node.op == "call_module" and node not in smaller.call.trace.barriers:
        set_sizes(program.leaf(node), smaller)
    edit.touch(node)


def _set_call(program: Program, edit: Edit, node: fx.Node, smaller: Smaller) -> None:
    resize = resize_of(program, node)
    changed = resize(smaller) if resize else None
    if changed is None:
        return
    if changed.target is node.target:
        edit.set_arguments(node, *changed.args, **_others(node, len(changed.args)))
    else:
        edit.replace(node, changed.target, *changed.args)


def _others(node: fx.Node, given: int) -> dict[str, Any]:
    """Arguments by keyword that are not among the first ones."""
    schema: Any = node.target
    first = {argument.name for argument in schema._schema.arguments[:given]}
    return {name: value for name, value in node.kwargs.items() if name not in first}
