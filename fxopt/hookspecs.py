"""The hooks of fxopt: all that a plugin can offer, in one place.

A plugin is a module that the entry-point group ``fxopt`` names, with functions marked
``@fxopt.plugin.hookimpl``. It implements the hooks that it wants and leaves the others out.
"""

from __future__ import annotations

from collections.abc import Sequence

import pluggy

from fxopt.analysis import Fact
from fxopt.backends import Backend
from fxopt.passes import Pass

PROJECT = "fxopt"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def fxopt_passes() -> Sequence[type[Pass]]:  # type: ignore[empty-body]
    """The classes of passes that the plugin brings.

    Each is a frozen dataclass with a class attribute ``info``. A name that another plugin has
    taken is an error that names both.
    """


@hookspec
def fxopt_backends() -> Sequence[type[Backend]]:  # type: ignore[empty-body]
    """The classes of backends that the plugin brings, each with a class attribute ``info``.

    Called even where the backend's own runtime is not installed: import that only in
    ``unavailable``, which says what is missing, and in ``lower``.
    """


@hookspec
def fxopt_facts() -> Sequence[Fact]:  # type: ignore[empty-body]
    """The facts that passes may require and provide by name."""
