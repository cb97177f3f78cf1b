"""Plugins: found, checked one by one, and offered by name."""

from fxopt.registry.discover import ENTRY_POINT_GROUP, default_registry, load_registry
from fxopt.registry.records import Clash, Kind, Plugin, Problem
from fxopt.registry.registry import Registry

__all__ = [
    "ENTRY_POINT_GROUP",
    "Clash",
    "Kind",
    "Plugin",
    "Problem",
    "Registry",
    "default_registry",
    "load_registry",
]
