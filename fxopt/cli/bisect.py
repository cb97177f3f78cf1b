"""``fxopt bisect``: which pass, and which rewrite in it, spoils the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxopt.cli.captured import Source, captured, holding, planned
from fxopt.cli.options import (
    CalibrationSource,
    Inputs,
    Model,
    Recipe,
    Seed,
    TargetName,
    Weights,
    check_calibration,
    parse_recipe,
)
from fxopt.errors import InputError

if TYPE_CHECKING:
    from fxopt.api.whole import Subject
    from fxopt.passes import Context, Pass


def bisect(
    model: Model,
    passes: Recipe,
    input: Inputs = None,
    calibration: CalibrationSource = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Relative output error that is fine; by default, that of rounding."),
    ] = None,
    target: TargetName = "cpu",
    weights: Weights = None,
    seed: Seed = 0,
) -> None:
    """Finds the pass, then the rewrite inside it, that spoils the outputs; then exits with 1."""
    from fxopt.cli.inputs import load_calibration
    from fxopt.pipeline import bisect as search
    from fxopt.registry import default_registry

    chosen = parse_recipe(passes) or []
    _check_tolerance(chosen, tolerance)
    batches = load_calibration(calibration, input or [], seed)
    check_calibration(chosen, batches)
    subject = captured(Source(model, input or [], weights, seed))
    plan = planned(chosen, holding(subject))
    context = _context(subject, target, batches, seed)
    facts = default_registry().facts
    result = search(subject.program, plan, context, tolerance=tolerance, facts=facts)
    typer.echo(result)
    if result.item is not None:
        raise typer.Exit(1)


def _check_tolerance(passes: Sequence[Pass], tolerance: float | None) -> None:
    from fxopt.passes import Lossy

    lossy = [item.info.name for item in passes if isinstance(item.info.fidelity, Lossy)]
    if lossy and tolerance is None:
        raise InputError(
            f"{', '.join(lossy)} may change the outputs: how much is still fine?",
            hint="give the relative output error, such as --tolerance 0.05",
        )


def _context(subject: Subject, target: str, batches: Iterable[Any] | None, seed: int) -> Context:
    from fxopt.api.whole import example_batches
    from fxopt.cost import find_target
    from fxopt.passes import Calibration, Context

    signature = subject.program.signature
    return Context(
        target=find_target(target),
        examples=example_batches(subject),
        calibration=None if batches is None else Calibration(batches, signature),
        seed=seed,
    )
