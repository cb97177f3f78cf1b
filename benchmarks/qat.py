"""What quantization-aware training brings back of what few bits cost.

Usage:
    python benchmarks/qat.py                                  both Fashion-MNIST nets, 4-bit weights
    python benchmarks/qat.py fashion_mobilenet --weight-bits 3 --epochs 1

The loss is that of the score against the float model; what is brought back is a share of it. Needs
`apt-get install dataset-fashion-mnist` and `pip install 'fxopt[training]'`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from accuracy import add_cache, output_error, quantized
from tabulate import tabulate
from tasks import TASKS, Task

from fxopt.emit import emit
from fxopt.training import Trainer, Training

NETS = ("fashion_resnet", "fashion_mobilenet")
HEADERS = ("model", "how", "score %", "drop", "brought back %", "output error", "seconds")


def rows_of(task: Task, options: argparse.Namespace) -> Iterator[list[object]]:
    """The float model, static quantization, and training with and without labels."""
    expected = task.outputs(task.model)
    before = task.score(expected)
    yield [task.name, "float", before, 0.0, None, 0.0, 0.0]
    lost = 0.0
    for how, settings, trainer in _ways(task, options):
        start = time.perf_counter()
        program = quantized(task, trainer, weight_bits=options.weight_bits, **settings)
        seconds = time.perf_counter() - start
        outputs = task.outputs(emit(program))
        drop = before - task.score(outputs)
        lost = lost or drop
        share = 100 * (1 - drop / lost) if trainer is not None and lost > 0 else None
        error = output_error(outputs, expected)
        yield [task.name, how, before - drop, drop, share, error, seconds]


def _ways(
    task: Task, options: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any], Trainer | None]]:
    yield "static", {}, None
    yield "static, GPTQ", {"rounding": "gptq"}, None
    learning = Training(
        task.training, epochs=options.epochs, optimizer="sgd", learning_rate=options.learning_rate
    )
    yield "LSQ", {"training": "lsq"}, _trainer(learning)
    unlabelled = replace(learning, data=[x for x, _ in task.training], loss=None)
    yield "LSQ, no labels", {"training": "lsq"}, _trainer(unlabelled)


def _trainer(training: Training) -> Trainer:
    return Trainer(training, progress=lambda line: print(f"  {line}", file=sys.stderr, flush=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=NETS)
    parser.add_argument("--weight-bits", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    add_cache(parser)
    options = parser.parse_args()
    tasks = [task for name in options.models for task in TASKS[name](options.cache)]
    rows = [row for task in tasks for row in rows_of(task, options)]
    print(tabulate(rows, headers=HEADERS, floatfmt=".4f", tablefmt="github"))


if __name__ == "__main__":
    main()
