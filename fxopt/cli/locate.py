"""Finds what the user names: ``path/to/file.py:name`` or ``package.module:name``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fxopt.errors import InputError


def locate(text: str) -> Any:
    """The object that ``text`` names.

    Args:
        text: ``path/to/file.py:name`` or ``package.module:name``; modules are also looked for in
            the current directory.

    Raises:
        InputError: There is no such file, module or name. An error inside the user's file is
            the user's to see, and passes through.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name:
        raise InputError(
            f"cannot read {text!r}", hint="write path/to/file.py:name or package.module:name"
        )
    module = _from_file(Path(place)) if place.endswith(".py") else _from_package(place)
    found: Any = module
    for atom in name.split("."):
        if not hasattr(found, atom):
            known = [key for key in vars(module) if not key.startswith("_")]
            raise InputError(
                f"{place} has no {name!r}", hint=f"it has {', '.join(known[:12]) or 'nothing'}"
            )
        found = getattr(found, atom)
    return found


def call(text: str, found: Callable[[], Any]) -> Any:
    """What a function or class that ``text`` names yields.

    Raises:
        InputError: It does not do without arguments.
    """
    try:
        inspect.signature(found).bind()
    except ValueError:  # a builtin, which says nothing of its arguments
        pass
    except TypeError as error:
        raise InputError(
            f"{text} cannot be called without arguments: {error}",
            hint="name a function that takes none, and gives them itself",
        ) from error
    return found()


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    name = f"_fxopt_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"cannot import {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and torch look classes up by their module's name
    sys.path.insert(0, str(path.parent.resolve()))  # as Python does for a script
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def _from_package(name: str) -> ModuleType:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise InputError(
            f"there is no module {name!r}", hint="is it installed, or in this directory?"
        ) from error
    finally:
        sys.path.remove("")
