"""Where a constant can be put that a layer should add to its outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Program

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Shift = Callable[[torch.Tensor], object]
"""Makes a layer add a constant, of shape (outputs,), in place of what its bias added."""


def shift_of(program: Program, node: fx.Node, alone: Collection[fx.Node]) -> Shift | None:
    """How a layer's outputs can be shifted: by its bias, or by the mean that is subtracted next.

    Args:
        program: Is not changed until the shift is called.
        node: The call of a convolution or linear layer.
        alone: As :func:`used_once` gives them.

    Returns:
        None where there is neither.
    """
    leaf: Any = program.leaf(node)
    if leaf.bias is not None:
        return leaf.bias.copy_  # type: ignore[no-any-return]
    norm = _norm_behind(program, node, alone)
    return None if norm is None else norm.running_mean.sub_


def _norm_behind(program: Program, node: fx.Node, alone: Collection[fx.Node]) -> Any:
    """The batch norm that alone takes a layer's outputs, and takes no others."""
    users = list(node.users)
    if len(users) != 1 or users[0] not in alone or not _channels_are_dim_1(program, node):
        return None
    norm: Any = program.leaf(users[0])
    return norm if type(norm) in _BATCH_NORMS and norm.running_mean is not None else None


def _channels_are_dim_1(program: Program, node: fx.Node) -> bool:
    """Whether a batch norm behind a layer normalises its outputs, not another dimension.

    So it is where the outputs have one dimension for the batch and the others as the weight has.
    """
    weight: Any = program.leaf(node).weight
    return bool(node.meta["val"].dim() == weight.dim())


def used_once(program: Program) -> set[fx.Node]:
    """Calls of modules whose tensors nothing else uses: what fits one call could spoil another."""
    calls = [node for node in program.nodes if node.op == "call_module"]
    uses = Counter(key for node in calls for key in _tensors(program, node))
    uses.update(id(program.tensor(node)) for node in program.nodes if node.op == "get_attr")
    return {n for n in calls if all(uses[key] == 1 for key in _tensors(program, n))}


def _tensors(program: Program, node: fx.Node) -> list[int]:
    leaf = program.leaf(node)
    return [id(tensor) for tensor in (*leaf.parameters(), *leaf.buffers())]
