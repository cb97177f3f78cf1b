"""``fxopt passes``: which passes there are, and what they declare."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fxopt.passes import Pass


def passes() -> None:
    """Lists the passes: stage, exact or lossy, settings and facts."""
    from fxopt.passes import STAGES
    from fxopt.registry import default_registry

    registry = default_registry()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("pass", "stage", "fidelity", "settings", "requires", "provides", "plugin"):
        table.add_column(name, overflow="fold")
    known = registry.passes.values()
    for cls in sorted(known, key=lambda c: (STAGES.index(c.info.stage), c.info.name)):
        info = cls.info
        cells = (
            info.name,
            info.stage,
            type(info.fidelity).__name__.lower(),
            "\n".join(settings(cls)),
            "\n".join((*info.requires, *info.needs)),
            "\n".join(info.provides),
            registry.owner(info.name),
        )
        table.add_row(*map(Text, cells))
    Console().print(table)


def settings(cls: type[Pass]) -> list[str]:
    """The settings of a pass with their defaults, as a recipe writes them."""
    from fxopt.passes import format_setting

    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return [format_setting(field) for field in fields if field.init]
