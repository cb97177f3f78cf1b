"""What tells one training from another, in words that are the same in every process."""

from __future__ import annotations

import enum
import functools
import hashlib
from collections.abc import Iterable, Mapping
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch

from fxopt.training.data import walk

_CONSTANTS = (
    type(None), bool, int, float, complex, str, bytes, enum.Enum, torch.dtype, torch.device
)  # fmt: skip


def describe(value: object) -> str:
    """A value with all that it is made of.

    A function counts with its code, its defaults and the constants and functions that it uses;
    lists and dictionaries that it uses do not, since it may keep a log there. Other objects that
    can be called count with their attributes, the rest with the name of their class.
    """
    return _described(value, ())


def describe_data(data: Iterable[Any], batches: int, labelled: bool, seed: int) -> str:
    """The number of batches, and the first one; not that where it is another each time."""
    first, second = (describe(next(walk(data, labelled, seed))) for _ in range(2))
    return f"{batches} {first if first == second else ''}"


def _described(value: object, above: tuple[object, ...]) -> str:
    if isinstance(value, _CONSTANTS):
        return repr(value)
    if any(value is other for other in above):
        return "itself"
    inside = ", ".join(_described(part, (*above, value)) for part in _parts(value))
    return f"{_name(value)}({inside})"


def _parts(value: object) -> Iterable[object]:
    match value:
        case torch.Tensor():
            return _tensor_parts(value)
        case functools.partial():
            return value.func, value.args, value.keywords
        case FunctionType():
            return value.__code__, value.__defaults__, value.__kwdefaults__, _used(value)
        case MethodType():
            return value.__func__, value.__self__
        case CodeType():
            return value.co_code, value.co_names, value.co_consts
        case tuple() | list():
            return value
        case set() | frozenset():
            return sorted(map(describe, value))
        case Mapping():
            return tuple(value.items())
    if not callable(value) or hasattr(value, "__qualname__"):
        return ()
    return tuple(getattr(value, "__dict__", {}).items())


def _tensor_parts(tensor: torch.Tensor) -> tuple[object, ...]:
    kind = tensor.dtype, tuple(tensor.shape)
    if tensor.layout is not torch.strided:
        return kind
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return *kind, hashlib.blake2b(flat.view(torch.uint8).numpy().data).digest()


def _used(function: FunctionType) -> dict[str, object]:
    """What a function closes over, and the constants among the globals that it names."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closed = {name: _held(cell) for name, cell in cells}
    named = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    constants = {name: each for name, each in named.items() if isinstance(each, _CONSTANTS)}
    logs = (list, dict, set)
    return constants | {name: each for name, each in closed.items() if not isinstance(each, logs)}


def _held(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # it is empty until what it is for is assigned
        return None


def _name(value: object) -> str:
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"
