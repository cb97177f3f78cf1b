"""``fxopt demo``: trains a small network, optimizes it for this machine, and prints the report."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from fxopt.cli.options import Backends, Json, Seed, TargetName

if TYPE_CHECKING:
    from fxopt.demo import Digits

_PASSES = "cleanup,fold_bn,quantize"
_BATCH = 32


def demo(
    target: TargetName = "cpu",
    backend: Backends = None,
    batch: Annotated[int, typer.Option(help="Images a call, for the latency.")] = _BATCH,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 2,
    width: Annotated[int, typer.Option(help="Channels of the first block.")] = 32,
    json: Json = None,
    seed: Seed = 0,
) -> None:
    """Trains a residual CNN on 4,000 digits, makes it int8, and shows what that brought."""
    from fxopt.cli.optimize import run, show
    from fxopt.demo import accuracy, load_digits

    digits = load_digits(seed)
    model = _trained(digits, width, epochs, seed)
    arguments = {
        "target": target,
        "passes": _PASSES,
        "backends": backend,
        "calibration": list(digits.images[:256].split(batch)),
        "evaluate": lambda module: accuracy(module, digits),
        "seed": seed,
    }
    show(run(model, (digits.test_images[:batch],), arguments).report, json)


def _trained(digits: Digits, width: int, epochs: int, seed: int) -> Any:
    import torch

    from fxopt.demo import DigitNet, accuracy, train

    console, start = Console(stderr=True), time.perf_counter()
    torch.manual_seed(seed)
    with console.status("training") as status:
        model = train(DigitNet(width), digits, epochs=epochs, seed=seed, progress=status.update)
    seconds = time.perf_counter() - start
    Console().print(
        f"trained on {len(digits.images)} digits in {seconds:.0f} s: "
        f"{accuracy(model, digits):.1%} of {len(digits.test_images)} test images right\n"
    )
    return model
