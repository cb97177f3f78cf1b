"""The ``fxopt`` command: its subcommands, and how errors of ours are shown."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from typer.core import TyperGroup

from fxopt.cli.bisect import bisect
from fxopt.cli.demo import demo
from fxopt.cli.optimize import optimize
from fxopt.cli.passes import passes
from fxopt.cli.plan import plan
from fxopt.cli.plugins import plugins
from fxopt.errors import FxoptError

EXIT_ERROR = 2


class Commands(TyperGroup):
    """Shows an error of ours in a box instead of a traceback, which is for bugs."""

    def invoke(self, ctx: Any) -> Any:  # click's context, which typer brings along
        try:
            return super().invoke(ctx)
        except FxoptError as error:
            if ctx.params.get("debug"):
                raise
            show_error(error, Console(stderr=True))
            raise typer.Exit(EXIT_ERROR) from error


app = typer.Typer(
    name="fxopt",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def show_error(error: FxoptError, console: Console) -> None:
    """Prints what failed, where, and what to do about it."""
    text = Text(str(error).partition("\n  hint: ")[0] if error.hint else str(error))
    if error.hint:
        text.append(f"\n\n{error.hint}", style="bold")
    console.print(Panel(text, title=type(error).__name__, title_align="left", border_style="red"))


def _version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import version

    import fxopt

    typer.echo(f"fxopt {fxopt.__version__}, torch {version('torch')}")
    raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """A compiler for trained PyTorch models: never slower, never silently worse."""


for command in (optimize, plan, bisect, passes, plugins, demo):
    app.command()(command)
