"""``fxopt plan``: the order in which passes would run, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fxopt.cli.captured import Source, captured, holding, planned
from fxopt.cli.options import Inputs, Recipe, Seed, Weights, parse_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxopt.passes import Pass


def plan(
    passes: Recipe,
    model: Annotated[
        str | None,
        typer.Argument(help="Plans for this model, on which facts are then checked."),
    ] = None,
    input: Inputs = None,
    weights: Weights = None,
    seed: Seed = 0,
) -> None:
    """Shows the order in which passes would run, and why."""
    chosen = parse_recipe(passes) or []
    if model is None:
        assumed = _assumed(chosen)
        typer.echo(planned(chosen, assumed).explain())
        if assumed:
            typer.echo(f"\nassumed of the model, since none is given: {', '.join(sorted(assumed))}")
        return
    subject = captured(Source(model, input or [], weights, seed))
    typer.echo(planned(chosen, holding(subject)).explain())


def _assumed(passes: Sequence[Pass]) -> set[str]:
    """The facts that are required and that none of ``passes`` provides."""
    required = {fact for item in passes for fact in item.info.requires}
    return required - {fact for item in passes for fact in item.info.provides}
