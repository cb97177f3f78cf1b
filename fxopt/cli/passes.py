"""``fxopt passes``: which passes there are, and what they declare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxopt.cli.tables import print_table

if TYPE_CHECKING:
    from fxopt.passes import Pass

_COLUMNS = ("pass", "stage", "fidelity", "plugin", "settings and facts")


def passes() -> None:
    """Lists the passes: stage, exact or lossy, settings with defaults, facts."""
    from fxopt.passes import STAGES
    from fxopt.registry import default_registry

    registry = default_registry()
    owners = {cls.info.name: plugin.name for plugin in registry.plugins for cls in plugin.passes}
    known = registry.passes.values()
    ordered = sorted(known, key=lambda cls: (STAGES.index(cls.info.stage), cls.info.name))
    print_table(_COLUMNS, [_row(cls, owners[cls.info.name]) for cls in ordered])


def _row(cls: type[Pass], owner: str) -> tuple[str, ...]:
    from fxopt.passes import default_settings

    info = cls.info
    lines = [
        *default_settings(cls),
        *(f"needs {need} data" for need in info.needs),
        *(f"requires {fact}" for fact in info.requires),
        *(f"provides {fact}" for fact in info.provides),
    ]
    return info.name, info.stage, type(info.fidelity).__name__.lower(), owner, "\n".join(lines)
