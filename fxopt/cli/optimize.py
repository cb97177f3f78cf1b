"""``fxopt optimize``: a model in, the report out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from fxopt.cli.options import (
    Backends,
    CalibrationSource,
    Inputs,
    Json,
    Model,
    Passes,
    Seed,
    TargetName,
    Weights,
    check_calibration,
    parse_recipe,
)

if TYPE_CHECKING:
    from fxopt.emit import OptimizedModule
    from fxopt.report import Report


def optimize(
    model: Model,
    input: Inputs = None,
    passes: Passes = None,
    target: TargetName = "cpu",
    backend: Backends = None,
    calibration: CalibrationSource = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="FILE:NAME", help="A function that takes a module and returns its score."
        ),
    ] = None,
    max_drop: Annotated[float | None, typer.Option(help="Points of score it may lose.")] = None,
    max_drift: Annotated[
        float | None, typer.Option(help="Relative output error it may have, such as 0.05.")
    ] = None,
    weights: Weights = None,
    workdir: Annotated[
        Path | None, typer.Option(help="Keeps dumps of the program after each pass there.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Writes the optimized model there, for fxopt.load.")
    ] = None,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Makes a model faster on this machine, and prints what was done and what it cost."""
    import fxopt
    from fxopt.cli.inputs import load_calibration, parse_inputs
    from fxopt.cli.locate import locate
    from fxopt.cli.model import load_model

    chosen = parse_recipe(passes)
    batches = load_calibration(calibration, input or [], seed)
    check_calibration(chosen, batches)
    arguments = {
        "target": target,
        "passes": chosen,
        "backends": backend,
        "calibration": batches,
        "evaluate": None if evaluate is None else locate(evaluate),
        "max_drop": max_drop,
        "max_drift": max_drift,
        "workdir": workdir,
        "seed": seed,
    }
    module = load_model(model, weights, seed)
    optimized = run(module, parse_inputs(input or [], seed), arguments)
    show(optimized.report, json)
    if save is not None:
        fxopt.save(optimized, save)


def run(model: Any, inputs: Any, arguments: dict[str, Any]) -> OptimizedModule:
    """Optimizes with a line on stderr that says what is being done."""
    import fxopt

    with Console(stderr=True).status("capturing") as status:
        return fxopt.optimize(
            model, inputs, progress=lambda line: status.update(escape(line)), **arguments
        )


def show(report: Report, path: Path | None) -> None:
    """Prints the report, and writes it to ``path`` where there is one."""
    from fxopt.report import save_report
    from fxopt.report.text import render

    render(report, Console())
    if path is not None:
        save_report(report, path)
