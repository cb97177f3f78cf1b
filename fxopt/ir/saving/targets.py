"""The functions that a saved program may call, by name: operators of torch, and a closed set."""

from __future__ import annotations

import builtins
import importlib
import math
import operator
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any

import torch

from fxopt.ir.ops import is_functional

Function = Callable[..., Any]

# Arithmetic on sizes. Of these modules nothing else may be named: builtins has exec, too.
_PURE: dict[ModuleType, tuple[str, ...]] = {
    operator: (
        "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "pos", "abs", "index",
        "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "not_", "invert", "truth",
        "lshift", "rshift", "is_", "is_not", "getitem",
    ),
    builtins: ("abs", "min", "max", "round", "pow", "sum", "divmod", "int", "float", "bool"),
    math: (
        "ceil", "floor", "trunc", "sqrt", "exp", "log", "log2", "log10", "pow", "prod", "fmod",
        "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "fabs",
        "gcd", "isfinite", "isinf", "isnan",
    ),
    torch: (
        "sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt", "sym_sum",
        "_sym_acos", "_sym_asin", "_sym_atan", "_sym_cos", "_sym_cosh", "_sym_log2", "_sym_sin",
        "_sym_sinh", "_sym_sqrt", "_sym_tan", "_sym_tanh",
    ),
}  # fmt: skip

_BY_NAME: dict[str, Function] = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module, names in _PURE.items()
    for name in names
    if hasattr(module, name)  # not all are in every version of torch
}
_NAMES = {function: name for name, function in _BY_NAME.items()}
_OPERATORS = "torch.ops"


def function_name(target: object) -> str | None:
    """The name under which :func:`find_function` finds ``target``; None when it has none."""
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, operation = target._schema.name.partition("::")
        return f"{_OPERATORS}.{namespace}.{operation}.{target._overloadname}"
    try:
        return _NAMES.get(target)  # type: ignore[call-overload, no-any-return]
    except TypeError:  # it cannot be hashed
        return None


def find_function(name: str, packages: Collection[str] = ()) -> Function:
    """The function that a file names.

    Args:
        name: As of :func:`function_name`.
        packages: Packages that may be imported to register operators of the same namespace.

    Raises:
        ValueError: There is no such function, or a program must not call it.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    prefix, _, path = name.rpartition(f"{_OPERATORS}.")
    parts = path.split(".")
    if prefix or len(parts) != 3:
        raise ValueError(f"a program cannot call {name!r}")
    found = _operator(*parts) or (_import(parts[0], packages) and _operator(*parts))
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"there is no operator {path} here; import the package that brings it")
    if not is_functional(found):
        raise ValueError(f"the operator {path} writes to its arguments")
    return found


def _operator(namespace: str, operation: str, overload: str) -> object:
    try:
        packet = getattr(getattr(torch.ops, namespace), operation)
        return (
            getattr(packet, overload) if isinstance(packet, torch._ops.OpOverloadPacket) else None
        )
    except (AttributeError, RuntimeError):
        return None


def _import(namespace: str, packages: Collection[str]) -> bool:
    if namespace in packages:
        importlib.import_module(namespace)
    return namespace in packages
