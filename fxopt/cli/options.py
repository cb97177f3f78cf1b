"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fxopt.passes import Pass

Model = Annotated[
    str,
    typer.Argument(
        help="torchvision:NAME, timm:NAME, path/to/file.py:NAME or package.module:NAME, "
        "where NAME is a module, or a function or class that makes one."
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="SIZES",
        help="Sizes of an example input, such as 1x3x224x224, 1x128:int64 or mask=1x128:bool; "
        "once an input. The values are random.",
    ),
]
Passes = Annotated[
    str | None,
    typer.Option(
        metavar="RECIPE",
        help="Passes with settings, such as 'cleanup,fold_bn,quantize'. Without it, the exact "
        "ones. [bold]fxopt passes[/bold] lists them.",
    ),
]
Recipe = Annotated[
    str,
    typer.Option("--passes", metavar="RECIPE", help="Passes with settings, as for optimize."),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|DEFAULT",
        help="A state dict to load; DEFAULT lets the zoo download its own. Without it, a zoo's "
        "weights are random: latency and size are real, quality means nothing.",
    ),
]
CalibrationSource = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE",
        help="Batches to calibrate on: FILE.npy, .npz or .pt, or path/to/file.py:loader; "
        "'random' for random ones, which is good for timing alone.",
    ),
]
Backends = Annotated[
    list[str] | None,
    typer.Option("--backend", help="Tries this backend alone; may be repeated."),
]
TargetName = Annotated[str, typer.Option("--target", help="cpu or cuda.")]
Seed = Annotated[int, typer.Option(help="For everything random.")]
Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Writes the whole report there too."),
]


def parse_recipe(text: str | None) -> Sequence[Pass] | None:
    """The passes of ``--passes``; None where the option was not given."""
    from fxopt.registry import default_registry

    return None if text is None else default_registry().parse(text)


def check_calibration(passes: Sequence[Pass] | None, calibration: Iterable[object] | None) -> None:
    """Says how to give calibration data, before any work is done.

    Raises:
        CalibrationError: A pass needs it and it was not given.
    """
    from fxopt.errors import CalibrationError

    needy = [p.info.name for p in passes or () if "calibration" in p.info.needs]
    if needy and calibration is None:
        raise CalibrationError(
            f"{', '.join(needy)} needs calibration data: typical inputs, to see which ranges "
            "the activations have",
            hint="give --calibration FILE.npy, .npz or .pt with some hundred samples, or "
            "path/to/file.py:loader; --calibration random does for timing alone",
        )
