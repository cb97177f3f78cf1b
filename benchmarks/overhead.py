"""What a call of an optimized module costs above the runtime's own call from Python.

Usage:
    python benchmarks/overhead.py

The net is so small that a call is overhead and little else. Cold: before each call, 64 MB are
moved through the caches, which is what the layers of a real net do. Microseconds, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from quiet import quiet
from rivals import onnxruntime, openvino, pytorch
from tabulate import tabulate
from torch import nn

from fxopt.cost import find_target
from fxopt.emit import emit
from fxopt.frontend import capture_program
from fxopt.pipeline.assignment import whole
from fxopt.registry import default_registry

RUNTIMES = {
    "openvino": openvino.fp32,
    "onnxruntime": onnxruntime.fp32,
    "inductor": pytorch.compiled_cpp,
    "eager": pytorch.eager,
}
HEADERS = ("runtime", "caches", "its own call", "fxopt", "above it")
_ROUNDS = 7


def rows() -> Iterator[list[object]]:
    """One for each runtime, with warm and with cold caches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
    inputs = (torch.randn(1, 64),)
    program, target = capture_program(model, inputs, {}), find_target("cpu")
    for name, build in RUNTIMES.items():
        backend = default_registry().backends[name]()
        module = emit(whole(backend).applied(program, target))
        own, fast = build(model, inputs), lambda module=module: module(*inputs)
        for caches, spoil, calls in (("warm", _nothing, 500), ("cold", _spoiler(), 60)):
            one, other = _alternating(own, fast, spoil, calls)
            yield [name, caches, one, other, other - one]


def _alternating(
    one: Callable[[], object], other: Callable[[], object], spoil: Callable[[], object], calls: int
) -> tuple[float, float]:
    """Medians of both, measured in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_ROUNDS):
        for call, kept in zip((one, other), times, strict=True):
            time.sleep(0.25)  # threads of the one before stop spinning
            for index in range(calls + 20):
                spoil()
                start = time.perf_counter()
                call()
                if index >= 20:
                    kept.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times[0]), statistics.median(times[1])


def _nothing() -> None:
    """Leaves the caches as they are."""


def _spoiler() -> Callable[[], object]:
    source, sink = np.ones(1 << 23), np.empty(1 << 23)
    return lambda: np.copyto(sink, source)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    quiet()
    with torch.no_grad():
        print(tabulate(rows(), headers=HEADERS, floatfmt=".1f", tablefmt="github"))


if __name__ == "__main__":
    main()
