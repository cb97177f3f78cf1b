"""Low rank on trained models: quality against measured latency, plain against data-aware.

Usage:
    python benchmarks/ranks.py                          all models
    python benchmarks/ranks.py minilm --keep 0.7 0.5

Each row is `low_rank` at a share of the multiply-adds, without training afterwards: by the weights
alone, or by what layers take and yield on calibration data; or by data, at a share of the latency
that is predicted for each layer. Latencies are of one sample in float32, measured in turns. The
last rows are what `fxopt.optimize` makes of the same pass: it never gives back what is slower, as
its latency says over that of what it makes of the model without the pass, timed in turns.
Needs what accuracy.py needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from accuracy import add_cache, output_error
from duel import ratio_of
from pruning import BACKENDS, captured, latencies, work
from quiet import quiet
from tabulate import tabulate
from tasks import TASKS, Task

import fxopt
from fxopt.cost import find_target
from fxopt.emit import emit
from fxopt.ir import Program
from fxopt.passes import Calibration, Context
from fxopt_low_rank import LowRank

MODELS = ("minilm", "fashion_resnet", "efficientnet_lite0")
WAYS: dict[str, dict[str, Any]] = {
    "weights": {"weighted": False, "cost": "work"},
    "data": {"cost": "work"},
    "data, latency (default)": {},
}
HEADERS = ("model", "kept", "by", "multiply-adds", "score %", "drop", "output error", "eager ms",
           *(f"{name} ms" for name in BACKENDS))  # fmt: skip


def rows_of(task: Task, options: argparse.Namespace) -> Iterator[list[Any]]:
    """The original, then each share, plain and data-aware."""
    original = captured(task, task.model)
    context = Context(
        find_target("cpu"), calibration=Calibration(task.calibration, original.signature)
    )
    programs: dict[tuple[str, str], Program] = {("all", ""): original}
    for keep in options.keep:
        for by, settings in WAYS.items():
            program = original.clone()
            LowRank(keep=keep, **settings).run(program, context)
            programs[f"{keep:g}", by] = program
            print(f"  {task.name}: {keep:g}, by {by}", file=sys.stderr, flush=True)
    times = latencies(task, {" ".join(name): each for name, each in programs.items()})
    expected = task.outputs(task.model)
    before = task.score(expected)
    for name, each in programs.items():
        outputs = task.outputs(emit(each))
        score, error, text = task.score(outputs), output_error(outputs, expected), " ".join(name)
        milliseconds = [times[f"{text}, {where}"] for where in ("eager", *BACKENDS)]
        yield [task.name, *name, work(each), score, before - score, error, *milliseconds]


def optimized(task: Task, keep: float) -> list[Any]:
    """What `optimize` gives back for the pass, timed beside what it makes of the same input."""
    fast = _optimized(task, f"cleanup,fold_bn,low_rank{{keep={keep:g}}}")
    whole = _optimized(task, "cleanup,fold_bn")
    report = fast.report
    chosen = report.regions[0].chosen
    status = {record.name: record.status for record in report.passes}["low_rank"]
    both = report.latency_after + whole.report.latency_after
    ratio = ratio_of(*(torch.no_grad()(partial(net, *task.example)) for net in (fast, whole)), both)
    return [task.name, f"{keep:g}", status, report.latency_before, report.latency_after,
            chosen.backend, ratio]  # fmt: skip


def _optimized(task: Task, passes: str) -> fxopt.OptimizedModule:
    log = partial(print, "  ", file=sys.stderr, flush=True)
    return fxopt.optimize(
        task.model, task.example, passes=passes, calibration=task.calibration, progress=log
    )


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.8, 0.6, 0.4])
    add_cache(parser)
    options = parser.parse_args()
    rows, whole = [], []
    for name in options.models:
        task = TASKS[name](options.cache)[-1]
        rows += rows_of(task, options)
        print(tabulate(rows, headers=HEADERS, floatfmt=".4g", tablefmt="github"), flush=True)
        whole.append(optimized(task, options.keep[-1]))
    headers = ("model", "kept", "low_rank", "before ms", "after ms", "runs on", "over without it")
    print(tabulate(whole, headers=headers, floatfmt=".4g", tablefmt="github"))


if __name__ == "__main__":
    main()
