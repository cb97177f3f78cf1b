"""Pruned without labels and without training: what fitting on calibration data brings back.

Usage:
    python benchmarks/labelfree.py                                  both Fashion-MNIST nets, 30 %
    python benchmarks/labelfree.py fashion_resnet --ratio 0.3 0.5

"plain" is right after pruning, "fitted" after least squares have fitted what is left to the old
outputs on the calibration data. Needs `apt-get install dataset-fashion-mnist`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from accuracy import add_cache
from pruning import NETS, captured, score_of, work
from quiet import quiet
from tabulate import tabulate
from tasks import TASKS, Task

from fxopt.cost import find_target
from fxopt.passes import Calibration, Context
from fxopt_prune import Prune

HEADERS = ("model", "ratio", "images", "multiply-adds", "original %", "plain %", "fitted %",
           "of the loss kept %")  # fmt: skip


def row_of(task: Task, ratio: float, images: int) -> list[Any]:
    """Scores before and after, and the share of what pruning loses that fitting keeps."""
    original = captured(task, task.model)
    batches = first(task.calibration, images)
    calibration = Calibration(batches, original.signature)
    context = Context(find_target("cpu"), calibration=calibration)
    found = []
    for fit in (False, True):
        program = original.clone()
        Prune(ratio=ratio, reconstruct=fit).run(program, context)
        found.append(program)
    whole, plain, fitted = (score_of(task, program) for program in (original, *found))
    share = 100 * (fitted - plain) / (whole - plain) if whole > plain else None
    left = work(found[1]) / work(original)
    seen = sum(len(batch[0]) for batch in batches)
    return [task.name, ratio, seen, f"{left:.0%}", whole, plain, fitted, share]


def first(batches: Sequence[Any], images: int) -> list[Any]:
    """As many whole batches as hold so many images at most."""
    ends = accumulate(len(batch[0]) for batch in batches)
    return [batch for batch, end in zip(batches, ends, strict=True) if end <= images]


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=NETS)
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.3])
    parser.add_argument("--images", type=int, default=256, help="to calibrate on, at most")
    add_cache(parser)
    options = parser.parse_args()
    tasks = [task for name in options.models for task in TASKS[name](options.cache)]
    rows = [row_of(task, ratio, options.images) for task in tasks for ratio in options.ratio]
    print(tabulate(rows, headers=HEADERS, floatfmt=".4g", tablefmt="github"))


if __name__ == "__main__":
    main()
