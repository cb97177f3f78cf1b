"""The plugins of both sides, which must be the same: those installed, and those named."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from fxopt.registry import Registry, default_registry, load_registry


def registry_with(plugins: Sequence[str]) -> Registry:
    """The installed plugins, and those in the modules of these names.

    Raises:
        ImportError: There is no such module.
        PluginError: It is no plugin, or brings a name that is taken.
    """
    if not plugins:
        return default_registry()
    registry = load_registry()
    for name in plugins:
        registry.register(importlib.import_module(name), name)
    return registry
