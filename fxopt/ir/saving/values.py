"""Plain values as JSON and back: arguments of nodes, settings of modules.

What JSON has itself stays as it is; anything else is an object with one key, which says what it is:
``{"dtype": "float32"}``, ``{"tuple": [1, 2]}``.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.immutable_collections import immutable_dict

Extra = Callable[[Any], "dict[str, Any] | None"]
"""Encodes what is no plain value, such as a node; None for what it does not know."""


class UnsavableError(Exception):
    """A value has no form in a file; the text says what it is."""


def encode(value: Any, extra: Extra = lambda value: None) -> Any:
    """The form of a value in JSON.

    Args:
        value: What to write.
        extra: Is asked first, about every value and every item of one.

    Raises:
        UnsavableError: It is no plain value.
    """
    special = extra(value)
    if special is not None:
        return special
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float) and not isinstance(value, enum.Enum):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, list):
        return [encode(item, extra) for item in value]
    return _encode_tagged(value, extra)


def _encode_tagged(value: Any, extra: Extra) -> dict[str, Any]:
    if type(value) in (tuple, torch.Size):
        return {"tuple": [encode(item, extra) for item in value]}
    if type(value) in (dict, immutable_dict):
        return {"dict": [[encode(k, extra), encode(v, extra)] for k, v in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(v, extra) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, complex):
        return {"complex": [encode(value.real), encode(value.imag)]}
    for kind, tag in _NAMED:
        if isinstance(value, kind):
            return {tag: str(value).removeprefix("torch.")}
    if value is Ellipsis:
        return {"ellipsis": True}
    raise UnsavableError(f"a {type(value).__module__}.{type(value).__qualname__}")


_NAMED: tuple[tuple[type, str], ...] = (
    (torch.dtype, "dtype"),
    (torch.device, "device"),
    (torch.memory_format, "memory_format"),
    (torch.layout, "layout"),
)


def decode(data: Any, extra: Callable[[str, Any], Any] | None = None) -> Any:
    """The value that :func:`encode` wrote.

    Args:
        data: What JSON gave.
        extra: Decodes what the ``extra`` of the writer wrote, from its one key and that's value.

    Raises:
        ValueError: It was not written by :func:`encode`.
    """
    if isinstance(data, list):
        return [decode(item, extra) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, content),) = data.items()
    if tag in _DECODERS:
        return _DECODERS[tag](content, lambda item: decode(item, extra))
    if extra is None:
        raise ValueError(f"a value of the unknown kind {tag!r}")
    return extra(tag, content)


def torch_constant(name: str, kind: type) -> Any:
    """The dtype, layout or memory format that torch has under ``name``.

    Raises:
        ValueError: It has none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, kind):
        raise ValueError(f"torch has no {kind.__name__} {name!r}")
    return found


Decoder = Callable[[Any, Callable[[Any], Any]], Any]
_DECODERS: dict[str, Decoder] = {
    "float": lambda text, _: float(text),
    "tuple": lambda items, item: tuple(item(each) for each in items),
    "dict": lambda pairs, item: {item(key): item(value) for key, value in pairs},
    "slice": lambda ends, item: slice(*(item(end) for end in ends)),
    "complex": lambda parts, item: complex(*(item(part) for part in parts)),
    "dtype": lambda name, _: torch_constant(name, torch.dtype),
    "device": lambda name, _: torch.device(name),
    "memory_format": lambda name, _: torch_constant(name, torch.memory_format),
    "layout": lambda name, _: torch_constant(name, torch.layout),
    "ellipsis": lambda _, __: Ellipsis,
}
