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
    """Whether two equal calls of ``node`` may differ, so that they must not be merged."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and _RANDOM_TAG in target.tags
