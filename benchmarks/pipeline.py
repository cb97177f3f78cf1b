"""Pruned, trained back, folded and quantized by one call: how much faster, at what loss.

Usage:
    python benchmarks/pipeline.py
    python benchmarks/pipeline.py fashion_mobilenet --ratio 0.5 --epochs 5

Prints the report of `fxopt.optimize`, which says what each pass did and cost, and the latency of
each part of the pipeline on its own, timed in turns beside the model as it is and beside
torch.compile. Needs `apt-get install dataset-fashion-mnist`.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from accuracy import add_cache
from quiet import quiet
from tabulate import tabulate
from tasks import TASKS, Task
from torch import nn

import fxopt
from fxopt.cost import measure

HEADERS = ("what", "score %", "drop", "ms", "times faster than eager")


def rows_of(task: Task, options: argparse.Namespace) -> Iterator[list[Any]]:
    """The model as it is, compiled, and after more and more passes."""
    prune = f"prune{{ratio={options.ratio:g}}}"
    pipelines = (
        "cleanup,fold_bn",
        "cleanup,fold_bn,quantize",
        f"{prune},distill,cleanup,fold_bn",
        f"{prune},distill,cleanup,fold_bn,quantize",
    )
    modules: dict[str, Callable[..., torch.Tensor]] = {
        "eager": task.model,
        "torch.compile": compiled(task),
        **{passes: optimized(task, passes, options) for passes in pipelines},
    }
    calls = {name: partial(_called, module, task.example) for name, module in modules.items()}
    times = {name: each.median for name, each in measure(calls, rounds=12, burst=15).items()}
    before = task.score(task.outputs(task.model))
    for name, module in modules.items():
        score = task.score(task.outputs(module))
        yield [name, score, before - score, times[name], times["eager"] / times[name]]


def optimized(task: Task, passes: str, options: argparse.Namespace) -> nn.Module:
    """What one call makes of the model, under a limit on the drop."""
    training = fxopt.Training(
        task.training,
        epochs=options.epochs,
        optimizer="sgd",
        learning_rate=0.02,
        weight_decay=5e-4,
    )
    fast = fxopt.optimize(
        task.model,
        task.example,
        passes=passes,
        calibration=task.calibration,
        training=training if "distill" in passes else None,
        evaluate=lambda module: task.score(task.outputs(module)) / 100,
        max_drop=options.max_drop,
        progress=partial(print, "  ", file=sys.stderr, flush=True),
    )
    print(fast.report, flush=True)
    return fast


def compiled(task: Task) -> Callable[..., torch.Tensor]:
    """The rival that needs nothing but torch."""
    call: Callable[..., torch.Tensor] = torch.compile(copy.deepcopy(task.model), dynamic=False)
    return call


def _called(module: Callable[..., torch.Tensor], example: Any) -> object:
    with torch.inference_mode():
        return module(*example)


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="fashion_resnet")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--max-drop", type=float, default=0.005, help="of a score from 0 to 1")
    add_cache(parser)
    options = parser.parse_args()
    (task,) = TASKS[options.model](options.cache)
    rows = list(rows_of(task, options))
    print(tabulate(rows, headers=HEADERS, floatfmt=".4g", tablefmt="github"))


if __name__ == "__main__":
    main()
