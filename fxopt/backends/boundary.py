"""What may cross the boundary of a region: tensors alone.

Sizes are computed again on the other side, from a tensor that is there anyway; attributes are read
again; and what takes a tensor out of a tuple stays with what makes the tuple.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import fx

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)

Place = tuple[fx.Node, int]
"""A tensor and a dimension of it."""


def is_tensor(node: fx.Node) -> bool:
    """Whether a node yields a tensor."""
    return isinstance(node.meta.get("val"), torch.Tensor)


def is_tuple(node: fx.Node) -> bool:
    """Whether a node yields several tensors at once."""
    value = node.meta.get("val")
    return isinstance(value, (tuple, list)) and not all(map(_is_number, value))


def is_free(node: fx.Node) -> bool:
    """Whether a node is done again where it is needed, rather than passed: an attribute, a size."""
    if node.op != "call_function":
        return node.op == "get_attr"
    value = node.meta.get("val")
    return _is_number(value) or (isinstance(value, (tuple, list)) and not is_tuple(node))


def is_operation(node: fx.Node) -> bool:
    """Whether a node computes something that a region may take over."""
    return node.op.startswith("call_") and not is_free(node)


def settle(nodes: Collection[fx.Node]) -> tuple[fx.Node, ...]:
    """The operations of a region that is to hold ``nodes``, in order.

    An item of a tuple goes where the tuple is made; attributes and sizes belong to no region.
    """
    if not nodes:
        return ()
    chosen = {node for node in nodes if is_operation(node)}
    ordered = list(next(iter(nodes)).graph.nodes)
    for node in ordered:
        if node.target is operator.getitem and is_tuple(node.args[0]):
            (chosen.add if node.args[0] in chosen else chosen.discard)(node)
    return tuple(node for node in ordered if node in chosen)


def constant_of(node: fx.Node) -> Any:
    """The value of a number or an input that is always the same.

    Raises:
        LookupError: It may differ from call to call.
    """
    value = node.meta.get("val")
    if isinstance(value, (*_SYMBOLIC, torch.Tensor)) or is_tuple(node) or node.op == "get_attr":
        raise LookupError(node.name)
    if isinstance(value, (tuple, list)) and any(isinstance(item, _SYMBOLIC) for item in value):
        raise LookupError(node.name)
    return value


def find_size(size: fx.Node, tensors: Iterable[fx.Node]) -> Place | None:
    """Where among ``tensors`` there is a dimension that is always as large as ``size`` is."""
    wanted = size.meta.get("val")
    if not isinstance(wanted, torch.SymInt):
        return None
    for node in tensors:
        for dim, found in enumerate(node.meta["val"].shape if is_tensor(node) else ()):
            if _is_same(wanted, found):
                return node, dim
    return None


def size_of_input(size: fx.Node) -> Place | None:
    """Where among the inputs of the program there is a dimension that is always as large."""
    if not is_free(size):
        return None
    return find_size(size, (node for node in size.graph.nodes if node.op == "placeholder"))


def needed_outside(node: fx.Node, inside: Collection[fx.Node]) -> bool:
    """Whether something outside of a region uses ``node``, if only through sizes."""
    for user in node.users:
        if is_free(user) and needed_outside(user, inside):
            return True
        if not is_free(user) and user not in inside:
            return True
    return False


_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def _is_number(value: object) -> bool:
    return isinstance(value, _NUMBERS)


def _is_same(wanted: torch.SymInt, found: object) -> bool:
    # compared as expressions: == on the sizes would make the symbol depend on the answer
    if not isinstance(found, torch.SymInt):
        return False
    one, other = wanted.node, found.node
    return one.shape_env is other.shape_env and bool(one.expr == other.expr)
