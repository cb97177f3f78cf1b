"""What is known of the functions that a ``call_function`` node may call."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_SIZE_MODULES = {operator.__name__, "_operator", builtins.__name__, math.__name__}
_PROBABILITIES = ("p", "dropout_p", "dropout")
_RANDOM_TAG = torch.Tag.nondeterministic_seeded


def is_aten(target: object) -> bool:
    """Whether ``target`` is an operator overload (``torch.ops.<namespace>.<name>.<overload>``)."""
    return isinstance(target, torch._ops.OpOverload)


def is_functional(target: torch._ops.OpOverload) -> bool:
    """Whether the operator neither writes to an argument nor to an ``out`` buffer."""
    return not target._schema.is_mutable


def is_size_arithmetic(target: Callable[..., Any] | str) -> bool:
    """Whether ``target`` is Python arithmetic on sizes, or ``operator.getitem``."""
    if not callable(target):
        return False
    name = getattr(target, "__name__", "")
    return getattr(target, "__module__", "") in _SIZE_MODULES or name.startswith(("sym_", "_sym_"))


def is_random(node: fx.Node) -> bool:
    """Whether two equal calls of ``node`` may differ, so that they must not be merged.

    An operator that only drops something does not, where it drops nothing: outside training, or
    with a probability of zero.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or _RANDOM_TAG not in target.tags:
        return False
    given = _arguments(node, target)
    idle = given.get("train") is False or any(given.get(name) == 0 for name in _PROBABILITIES)
    return not idle


def _arguments(node: fx.Node, target: torch._ops.OpOverload) -> dict[str, Any]:
    schema = target._schema.arguments
    given = {a.name: a.default_value for a in schema if a.has_default_value()}
    given |= {a.name: value for a, value in zip(schema, node.args, strict=False)}
    return given | node.kwargs
