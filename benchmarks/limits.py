"""Whether a limit on the drop of a score is kept, on data that calibration has not seen.

Usage:
    python benchmarks/limits.py                             all models, at most 0.2 points
    python benchmarks/limits.py silero_vad --max-drop 0.001

The score of the optimized module is computed here, once more, on all scored data. Needs what
accuracy.py needs.
"""

from __future__ import annotations

import argparse
import sys

import torch
from accuracy import PASSES, add_cache, output_error
from quiet import quiet
from tabulate import tabulate
from tasks import TASKS, Task
from torch import nn

import fxopt

HEADERS = (
    "model", "score %", "optimized %", "drop", "limit", "kept", "output error", "before ms",
    "after ms", "passes", "runs on",
)  # fmt: skip


def row_of(task: Task, max_drop: float, passes: str) -> list[object]:
    """What `optimize` makes of a task under a limit."""

    def evaluate(module: nn.Module) -> float:
        return task.score(task.outputs(module)) / 100

    fast = fxopt.optimize(
        task.model,
        task.example,
        passes=passes,
        calibration=task.calibration,
        evaluate=evaluate,
        max_drop=max_drop,
        progress=lambda line: print(f"  {line}", file=sys.stderr, flush=True),
    )
    print(fast.report, file=sys.stderr)
    expected, outputs = task.outputs(task.model), task.outputs(fast)
    before, after = task.score(expected), task.score(outputs)
    chosen = fast.report.regions[0].chosen
    ran = ", ".join(f"{count} {kind}" for kind, count in chosen.precisions.items())
    kept = before - after <= 100 * max_drop + 1e-9
    return [
        task.name, before, after, before - after, 100 * max_drop, "yes" if kept else "NO",
        output_error(outputs, expected), fast.report.latency_before, fast.report.latency_after,
        fast.recipe, f"{chosen.backend} ({ran})",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=TASKS)
    parser.add_argument("--max-drop", type=float, default=0.002, help="of a score from 0 to 1")
    parser.add_argument("--passes", default=",".join(PASSES))
    add_cache(parser)
    options = parser.parse_args()
    quiet()
    tasks = [task for name in options.models for task in TASKS[name](options.cache)]
    rows = [row_of(task, options.max_drop, options.passes) for task in tasks]
    print(f"torch {torch.__version__}, passes {options.passes}")
    print(tabulate(rows, headers=HEADERS, floatfmt=".4g", tablefmt="github"))


if __name__ == "__main__":
    main()
