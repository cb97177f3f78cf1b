"""Schemes of int8 on nets with depthwise convolutions, where careless ones break.

Usage:
    python benchmarks/schemes.py                        both nets, all schemes
    python benchmarks/schemes.py fashion_mobilenet --weight-bits 4
    python benchmarks/schemes.py --tasks '*enlarged' --schemes '*AdaRound*'

Each row is one setting of `quantize`, scored as simulated in float; needs what accuracy.py needs.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
from collections.abc import Iterator
from typing import Any

from accuracy import add_cache, output_error, quantized
from tabulate import tabulate
from tasks import TASKS, Task

from fxopt.emit import emit

NETS = ("fashion_mobilenet", "efficientnet_lite0")

PLAIN: dict[str, Any] = {"bias_correction": False}
SCHEMES: dict[str, dict[str, Any]] = {
    "min-max": {**PLAIN, "calibrator": "minmax"},
    "moving average": {**PLAIN, "calibrator": "moving_average"},
    "percentile": {**PLAIN, "calibrator": "percentile"},
    "KL divergence": {**PLAIN, "calibrator": "entropy"},
    "MSE": {**PLAIN},
    "MSE, equalized by weights": {**PLAIN, "equalization": "weights"},
    "MSE, equalized by activations": {**PLAIN, "equalization": "activations"},
    "MSE, scale per channel": {**PLAIN, "depthwise": "channel"},
    "MSE, weights per tensor": {**PLAIN, "weights": "tensor"},
    "MSE, weights per tensor, equalized by weights": {
        **PLAIN,
        "weights": "tensor",
        "equalization": "weights",
    },
    "MSE, weights per tensor, equalized by weights, bias correction": {
        "weights": "tensor",
        "equalization": "weights",
    },
    "MSE, bias correction (default)": {},
    "MSE, GPTQ": {**PLAIN, "rounding": "gptq"},
    "MSE, AdaRound": {**PLAIN, "rounding": "adaround"},
    "MSE, bias correction, equalized by activations": {"equalization": "activations"},
    "MSE, bias correction, GPTQ": {"rounding": "gptq"},
    "all three": {"equalization": "activations", "rounding": "gptq"},
    "all three, AdaRound": {"equalization": "activations", "rounding": "adaround"},
}

HEADERS = ("model", "scheme", "score %", "drop", "answers", "output error", "seconds")


def rows_of(
    task: Task, schemes: list[str], bits: int
) -> Iterator[tuple[str, str, float, float, int, float, float]]:
    """One row for each scheme."""
    expected = task.outputs(task.model)
    before = task.score(expected)
    for scheme in schemes:
        start = time.perf_counter()
        program = emit(quantized(task, weight_bits=bits, **SCHEMES[scheme]))
        seconds = time.perf_counter() - start
        outputs = task.outputs(program)
        after, error = task.score(outputs), output_error(outputs, expected)
        print(f"  {task.name}: {scheme}: {after:.2f}, {error:.4f}", file=sys.stderr, flush=True)
        yield task.name, scheme, after, before - after, task.count, error, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=NETS)
    parser.add_argument("--tasks", default="*", help="a pattern, such as '*enlarged'")
    parser.add_argument("--schemes", default="*", help="a pattern, such as '*GPTQ'")
    parser.add_argument("--weight-bits", type=int, default=8)
    add_cache(parser)
    options = parser.parse_args()
    schemes = fnmatch.filter(SCHEMES, options.schemes)
    tasks = [task for name in options.models for task in TASKS[name](options.cache)]
    rows: list[tuple[object, ...]] = []
    for task in tasks:
        if fnmatch.fnmatch(task.name, options.tasks):
            rows += rows_of(task, schemes, options.weight_bits)
            print(tabulate(rows, headers=HEADERS, floatfmt=".4f", tablefmt="github"), flush=True)


if __name__ == "__main__":
    main()
