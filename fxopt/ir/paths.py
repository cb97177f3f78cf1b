"""Dotted paths in the module tree of a program: finding free ones, filling and pruning them."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn


def free_path(root: nn.Module, wanted: str) -> str:
    """``wanted`` if nothing is there yet, or else that with a number behind it."""
    if not _is_module_path(root, wanted.rpartition(".")[0]):
        wanted = wanted.replace(".", "_")
    candidates = (f"{wanted}_{i}" if i else wanted for i in itertools.count())
    return next(path for path in candidates if _is_free(root, path))


def put_module(root: nn.Module, path: str, module: nn.Module) -> nn.Module | None:
    """Puts ``module`` at ``path`` and returns the module that was there before."""
    owner, name = _owner(root, path), path.rpartition(".")[2]
    earlier = owner._modules.get(name)
    owner.add_module(name, module)
    return earlier


def put_buffer(root: nn.Module, path: str, tensor: torch.Tensor) -> None:
    """Registers a buffer at a free path."""
    _owner(root, path).register_buffer(path.rpartition(".")[2], tensor)


def prune(module: nn.Module, used: Collection[str], prefix: str = "") -> None:
    """Removes below ``module`` each tensor and module that no path of ``used`` leads to.

    A module that is itself in ``used`` keeps all that it has.
    """
    for name, child in list(module._modules.items()):  # named_children() hides second names
        path = f"{prefix}{name}"
        if path in used or child is None:
            continue
        if any(other.startswith(f"{path}.") for other in used):
            prune(child, used, f"{path}.")
        else:
            delattr(module, name)
    for name in [*module._parameters, *module._buffers]:
        if f"{prefix}{name}" not in used:
            _drop_tensor(module, name)


def _drop_tensor(module: nn.Module, name: str) -> None:
    if isinstance(module, fx.GraphModule) or type(module) is nn.Module:
        delattr(module, name)
    else:  # a layer of which only a weight is read: it must still be able to print itself
        setattr(module, name, None)


def _owner(root: nn.Module, path: str) -> nn.Module:
    """The module that the last part of ``path`` belongs to; made where it is not there."""
    for atom in path.split(".")[:-1]:
        if not hasattr(root, atom):
            root.add_module(atom, nn.Module())
        root = root.get_submodule(atom)
    return root


def _is_module_path(root: nn.Module, path: str) -> bool:
    """Whether all along ``path`` there are modules, as far as there is anything."""
    value: Any = root
    for atom in path.split(".") if path else ():
        if not hasattr(value, atom):
            return True
        value = getattr(value, atom)
        if not isinstance(value, nn.Module):
            return False
    return True


def _is_free(root: nn.Module, path: str) -> bool:
    value: Any = root
    for atom in path.split("."):
        if not hasattr(value, atom):
            return True
        value = getattr(value, atom)
    return False
