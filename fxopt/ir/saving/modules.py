"""The module tree of a program: leaves with their settings, and what holds them.

A leaf is its class, its plain attributes, tensors and children. What is no leaf only holds others
and becomes a bare ``nn.Module``.
"""

from __future__ import annotations

import re
import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from fxopt.ir.leaf import LeafModule, is_training_only
from fxopt.ir.saving.classes import class_path, find_class
from fxopt.ir.saving.tensors import TensorReader, TensorWriter
from fxopt.ir.saving.values import UnsavableError, decode, encode

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_TREE = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_NAME = re.compile(r"[^.\"\\\x00-\x1f\x7f]+")  # such as generated code can quote


class ModuleWriter:
    """Writes a module tree; one that hangs in several places is written once.

    Args:
        tensors: Takes the tensors.
        leaves: The modules that nodes call.

    Attributes:
        table: An entry per module.
        vanished: How many leaves of each class became identities.
    """

    def __init__(self, tensors: TensorWriter, leaves: Collection[nn.Module]) -> None:
        self.table: list[dict[str, Any]] = []
        self.vanished: Counter[str] = Counter()
        self._tensors = tensors
        self._leaves = leaves
        self._indices: dict[nn.Module, int] = {}

    def add(self, module: nn.Module, path: str = "", inside_leaf: bool = False) -> int:
        """The index of a module in the table.

        Raises:
            UnsavableError: It is a leaf that has no form in a file; the text names it.
        """
        if module not in self._indices:
            self._indices[module] = len(self.table)
            self.table.append({})
            is_leaf = inside_leaf or module in self._leaves
            self.table[self._indices[module]] = self._entry(module, path, is_leaf)
        return self._indices[module]

    def _entry(self, module: nn.Module, path: str, is_leaf: bool) -> dict[str, Any]:
        if is_leaf and _vanishes(module):
            self.vanished[type(module).__name__] += 1
            module = nn.Identity().train(module.training)
        entry: dict[str, Any] = {"training": module.training}
        entry["parameters"] = self._tensor_indices(module._parameters, path)
        entry["buffers"] = self._tensor_indices(module._buffers, path)
        entry["plain"] = {} if is_leaf else self._tensor_indices(_plain_tensors(module), path)
        entry["transient"] = sorted(module._non_persistent_buffers_set)
        entry["children"] = {
            _checked(name): None if child is None else self.add(child, _join(path, name), is_leaf)
            for name, child in module._modules.items()
        }
        return entry | self._settings(module, path) if is_leaf else entry

    def _settings(self, leaf: nn.Module, path: str) -> dict[str, Any]:
        try:
            attributes = dict(self._attributes(leaf, path))
            return {"class": class_path(type(leaf)), "attributes": attributes}
        except UnsavableError as error:
            kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            raise UnsavableError(f"the leaf {path}, a {kind}, {error}") from error

    def _attributes(self, module: nn.Module, path: str) -> Iterator[tuple[str, Any]]:
        for name, value in vars(module).items():
            if name in _OF_EVERY_MODULE:
                if "hooks" in name and value:
                    raise UnsavableError("which has hooks")
                continue
            try:
                yield name, encode(value, partial(self._tensor, _join(path, name)))
            except UnsavableError as error:
                raise UnsavableError(f"whose attribute {name} holds {error}") from error

    def _tensor(self, path: str, value: Any) -> dict[str, Any] | None:
        weak = isinstance(value, weakref.ref)
        tensor = value() if weak else value
        if not isinstance(tensor, torch.Tensor):
            return None
        return {"weak" if weak else "tensor": self._tensors.add(tensor, path)}

    def _tensor_indices(
        self, tensors: Mapping[str, torch.Tensor | None], path: str
    ) -> dict[str, int | None]:
        return {
            _checked(name): None if t is None else self._tensors.add(t, _join(path, name))
            for name, t in tensors.items()
        }


class ModuleReader:
    """Builds the modules of a table.

    Args:
        table: As of :class:`ModuleWriter`.
        tensors: Gives the tensors.
        packages: Top-level packages that classes of leaves may be imported from.
    """

    def __init__(
        self, table: Sequence[Mapping[str, Any]], tensors: TensorReader, packages: Collection[str]
    ) -> None:
        self._table = table
        self._tensors = tensors
        self._packages = packages
        self._made: dict[int, nn.Module] = {}

    def root(self, title: str) -> fx.GraphModule:
        """The first module, as a GraphModule with an empty graph."""
        if not title.isidentifier():
            raise ValueError(f"{title!r} is no name of a class")
        root = fx.GraphModule(nn.Module(), fx.Graph(), title)
        self._fill(root, self._table[0])
        return root

    def _module(self, index: int) -> nn.Module:
        if index not in self._made:
            self._made[index] = self._new(self._table[index])
            self._fill(self._made[index], self._table[index])
        return self._made[index]

    def _new(self, entry: Mapping[str, Any]) -> nn.Module:
        if "class" not in entry:
            return nn.Module()
        cls = find_class(entry["class"], self._packages)
        module: nn.Module = cls.__new__(cls)
        nn.Module.__init__(module)
        return module

    def _fill(self, module: nn.Module, entry: Mapping[str, Any]) -> None:
        module.training = bool(entry["training"])
        for name, index in entry["parameters"].items():
            module._parameters[_checked(name)] = self._get(index)  # type: ignore[assignment]
        for name, index in entry["buffers"].items():
            module._buffers[_checked(name)] = self._get(index)
        for name, index in entry["plain"].items():
            vars(module)[_own(name)] = self._get(index)
        module._non_persistent_buffers_set = set(entry["transient"])
        for name, index in entry["children"].items():
            module._modules[_checked(name)] = None if index is None else self._module(index)
        for name, data in entry.get("attributes", {}).items():
            # not by setattr(): a class may do there what it has done already
            vars(module)[_own(name)] = decode(data, self._tensor)

    def _get(self, index: int | None) -> torch.Tensor | None:
        return None if index is None else self._tensors[index]

    def _tensor(self, tag: str, index: int) -> Any:
        if tag not in ("tensor", "weak"):
            raise ValueError(f"an attribute of the unknown kind {tag!r}")
        tensor = self._tensors[index]
        return weakref.ref(tensor) if tag == "weak" else tensor


def _vanishes(module: nn.Module) -> bool:
    known = isinstance(module, LeafModule) or type(module).__module__.startswith("torch.nn.")
    return not known and is_training_only(module)


def _plain_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t for name, t in vars(module).items() if isinstance(t, torch.Tensor)}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _checked(name: str) -> str:
    """A name that may become part of generated code."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a module or tensor")
    return name


def _own(name: str) -> str:
    if name in _OF_EVERY_MODULE:
        raise ValueError(f"the attribute {name!r} is not for files to set")
    return _checked(name)
