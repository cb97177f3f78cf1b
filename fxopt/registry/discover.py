"""Finding the installed plugins through the entry-point group ``fxopt``."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from fxopt.errors import PluginError
from fxopt.registry.checks import describe, inspect_plugin
from fxopt.registry.records import Origin, Plugin, Problem
from fxopt.registry.registry import Registry

ENTRY_POINT_GROUP = "fxopt"


def load_registry(points: Iterable[EntryPoint] | None = None) -> Registry:
    """Loads every installed plugin, each on its own.

    One that is broken is recorded in :attr:`Registry.problems` and skipped; names that two of
    them bring are recorded in :attr:`Registry.clashes`, and an error as soon as the registry is
    asked for something by name.

    Args:
        points: The entry points; by default, all installed ones of the group ``fxopt``.
    """
    found = entry_points(group=ENTRY_POINT_GROUP) if points is None else points
    # Sorted, so that the order in which packages were installed makes no difference.
    loaded = [_load(point) for point in sorted(found, key=lambda p: (p.name, p.value))]
    return Registry(
        [item for item in loaded if isinstance(item, Plugin)],
        [item for item in loaded if isinstance(item, Problem)],
    )


@functools.cache
def default_registry() -> Registry:
    """The registry of the installed plugins, loaded on first use and then kept."""
    return load_registry()


def _load(point: EntryPoint) -> Plugin | Problem:
    origin = _origin(point)
    try:
        return inspect_plugin(point.load(), origin)
    except PluginError as error:
        return Problem(origin, error.what, error.hint or _reinstall(origin))
    except Exception as error:  # noqa: BLE001 - importing a plugin may raise anything
        return Problem(origin, f"cannot be imported: {describe(error)}", _reinstall(origin))


def _origin(point: EntryPoint) -> Origin:
    if point.dist is None:
        return Origin(point.name, module=point.value)
    return Origin(point.name, point.dist.name, point.dist.version, point.value)


def _reinstall(origin: Origin) -> str:
    package = origin.distribution or origin.module
    return f"update or reinstall {package}, or tell its author"
