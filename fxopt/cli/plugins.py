"""``fxopt plugins``: what was found, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fxopt.cli.options import TargetName
from fxopt.cli.tables import print_table

if TYPE_CHECKING:
    from fxopt.registry import Plugin, Registry

_COLUMNS = ("plugin", "package", "version", "passes", "backends", "facts")


def plugins(
    target: TargetName = "cpu",
    strict: Annotated[
        bool, typer.Option("--strict", help="Fails where there is any problem.")
    ] = False,
) -> None:
    """Lists the plugins found, the backends usable here, and problems."""
    from fxopt.registry import default_registry

    registry = default_registry()
    print_table(_COLUMNS, [_row(plugin) for plugin in registry.plugins])
    problems = _problems(registry)
    for line in [*_unusable(registry, target), *problems]:
        Console().print(f"\n{line}", markup=False, highlight=False)
    if strict and problems:
        raise typer.Exit(1)


def _row(plugin: Plugin) -> tuple[str, ...]:
    return (
        plugin.name,
        plugin.distribution,
        plugin.version,
        "\n".join(cls.info.name for cls in plugin.passes),
        "\n".join(cls.info.name for cls in plugin.backends),
        "\n".join(fact.name for fact in plugin.facts),
    )


def _problems(registry: Registry) -> list[str]:
    clashes = [str(clash.error()) for clash in registry.clashes]
    return [f"problem: {text}" for text in (*map(str, registry.problems), *clashes)]


def _unusable(registry: Registry, target: str) -> list[str]:
    from fxopt.cost import find_target

    if registry.clashes:  # nothing can be looked up by name before that is settled
        return []
    _, unusable = registry.available_backends(find_target(target))
    return [f"backend {name} is not usable here: {reason}" for name, reason in unusable]
