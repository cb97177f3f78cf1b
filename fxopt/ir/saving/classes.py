"""Which classes of modules may stand in a file, and how they are found again."""

from __future__ import annotations

import importlib
from collections.abc import Collection

from torch import nn

from fxopt.ir.leaf import LeafModule
from fxopt.ir.saving.values import UnsavableError

_STANDARD = "torch.nn.modules."
_OWN = "fxopt"


def class_path(cls: type[nn.Module]) -> str:
    """Where a class is found: ``torch.nn.modules.linear:Linear``.

    Raises:
        UnsavableError: It is neither of torch.nn nor a LeafModule, or cannot be imported.
    """
    if not _is_allowed(cls):
        raise UnsavableError("which is neither of torch.nn nor a LeafModule")
    if "<locals>" in cls.__qualname__ or cls.__module__ == "__main__":
        raise UnsavableError(f"whose class cannot be imported from {cls.__module__}")
    return f"{cls.__module__}:{cls.__qualname__}"


def find_class(path: str, packages: Collection[str]) -> type[nn.Module]:
    """The class that a file names.

    Args:
        path: As of :func:`class_path`.
        packages: Top-level packages besides torch and fxopt that may be imported.

    Raises:
        ValueError: It may not be imported, or is not there, or is no class of leaf modules.
    """
    module, _, name = path.partition(":")
    top = module.partition(".")[0]
    known = module.startswith(_STANDARD) or top == _OWN or top in packages
    if not known or "__main__" in module.split("."):
        raise ValueError(f"{module} may not be imported; name its package in packages=")
    try:
        found: object = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{module} cannot be imported: {error}") from error
    for atom in name.split("."):
        found = vars(found).get(atom)
    if not (isinstance(found, type) and issubclass(found, nn.Module) and _is_allowed(found)):
        raise ValueError(f"{path} is no class of torch.nn and no LeafModule")
    return found


def _is_allowed(cls: type[nn.Module]) -> bool:
    return cls.__module__.startswith(_STANDARD) or issubclass(cls, LeafModule)
