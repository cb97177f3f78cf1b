"""Values and the memory they live in: when two nodes may stand for each other.

A program is functional, so that inside of it nobody can tell whether two values share memory.
The user can: what a model returns may be changed in place. A result that had memory of its own
must not become an alias of an input, of a constant of the program or of another result.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fxopt.plugin import Program, is_aten


def same_kind(first: fx.Node, second: fx.Node) -> bool:
    """Whether both nodes yield a strided tensor of one shape, dtype and device."""
    a, b = first.meta.get("val"), second.meta.get("val")
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return False
    return same_shape(a, b) and _traits(a) == _traits(b)


def same_shape(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two shapes are equal, symbols included.

    Symbolic sizes are compared by their text: a comparison by ``==`` would add a guard.
    """
    return [str(size) for size in first.shape] == [str(size) for size in second.shape]


def _traits(value: torch.Tensor) -> tuple[Any, ...]:
    return (value.dtype, value.device, value.layout)


def escapes(program: Program, node: fx.Node) -> bool:
    """Whether the memory of ``node`` may be among the program's outputs, as itself or a view."""
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        for user in current.users:
            if user.op == "output":
                return True
            if user not in seen and _may_alias(program, user, current):
                seen.add(user)
                pending.append(user)
    return False


def _may_alias(program: Program, user: fx.Node, operand: fx.Node) -> bool:
    if user.target is operator.getitem or _shares_storage(user, operand):
        return True
    if is_aten(user.target):
        return _declares_alias(user.target)
    if user.op == "call_module":
        # a leaf that a plugin brought may return what it was given
        return not type(program.leaf(user)).__module__.startswith("torch.nn.modules.")
    return False


def _declares_alias(operator: Any) -> bool:
    annotated = any(result.alias_info is not None for result in operator._schema.returns)
    return bool(annotated or torch.Tag.maybe_aliasing_or_mutating in operator.tags)


def _shares_storage(first: fx.Node, second: fx.Node) -> bool:
    a, b = first.meta.get("val"), second.meta.get("val")
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return False
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def argument(node: fx.Node, name: str) -> Any:
    """The argument called ``name`` of a call of an operator overload; its default if not given.

    Raises:
        KeyError: The operator has no such argument.
    """
    if name in node.kwargs:
        return node.kwargs[name]
    schema = node.target._schema  # type: ignore[union-attr]
    for index, declared in enumerate(schema.arguments):
        if declared.name == name:
            return node.args[index] if index < len(node.args) else declared.default_value
    raise KeyError(f"{node.target} has no argument {name}")


def operand(node: fx.Node) -> fx.Node | None:
    """The first positional argument, where it is a node."""
    first = node.args[0] if node.args else None
    return first if isinstance(first, fx.Node) else None
