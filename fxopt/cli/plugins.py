"""``fxopt plugins``: what was found, and what is wrong with it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text


def plugins() -> None:
    """Lists the plugins found, with versions and problems."""
    from fxopt.registry import default_registry

    registry = default_registry()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("plugin", "package", "version", "passes", "backends", "facts"):
        table.add_column(name, overflow="fold")
    raise NotImplementedError
