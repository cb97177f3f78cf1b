"""The nesting of a program's inputs and outputs, as JSON and back.

torch's own reader imports whatever module the text names for an enum or the factory of a
defaultdict. Here that is limited before the reader sees it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from torch.utils import _pytree as pytree

from fxopt.ir.saving.values import UnsavableError

_FACTORIES = frozenset({
    ("builtins", name) for name in ("list", "dict", "set", "tuple", "int", "float", "str", "bool")
})  # fmt: skip


def dump_spec(spec: pytree.TreeSpec) -> str:
    """A tree spec as text.

    Raises:
        UnsavableError: It has a container of a class that is not registered by name with torch.
    """
    try:
        text = pytree.treespec_dumps(spec)
    except (NotImplementedError, TypeError) as error:
        raise UnsavableError(f"the nesting {spec} ({error})") from error
    if pytree.treespec_loads(text) != spec:  # JSON turns a tuple that is a key into a list
        raise UnsavableError(f"the nesting {spec}")
    return text


def load_spec(text: str, packages: Collection[str]) -> pytree.TreeSpec:
    """The tree spec that was written.

    Args:
        text: As of :func:`dump_spec`.
        packages: Top-level packages whose enums may be keys.

    Raises:
        ValueError: It names something that may not be imported, or a class that is not registered.
    """
    for item in _objects(json.loads(text)):
        _check(item, packages)
    try:
        return pytree.treespec_loads(text)
    except (NotImplementedError, AssertionError) as error:
        raise ValueError(str(error)) from error


def _check(item: dict[str, Any], packages: Collection[str]) -> None:
    module = str(item.get("fqn", "")).partition(":")[0]
    if "__enum__" in item and module.partition(".")[0] not in packages:
        raise ValueError(f"the module {module} may not be imported; name it in packages=")
    factory = (item.get("default_factory_module"), item.get("default_factory_name"))
    if factory != (None, None) and factory not in _FACTORIES:
        raise ValueError(f"a defaultdict may not be made by {factory[0]}.{factory[1]}")


def _objects(data: Any) -> Iterator[dict[str, Any]]:
    """All JSON objects in ``data``, and in texts there that are JSON themselves."""
    if isinstance(data, str):
        try:
            data = json.loads(data)
        except ValueError:
            return
    if isinstance(data, dict):
        yield data
        data = [*data, *data.values()]
    if isinstance(data, list):
        for item in data:
            yield from _objects(item)
