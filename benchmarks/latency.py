"""fxopt beside its rivals, all in one run: latency and output error, fp32 and int8.

Usage:
    python benchmarks/latency.py                                   resnet50, mobilenet, ViT
    python benchmarks/latency.py resnet18 --batch 8 --rounds 8
    python benchmarks/latency.py vit_b_16 --precision int8 --out benchmarks/results/vit.json

All candidates of a model are built first, then timed round robin in bursts, with a pause before
each burst so that one rival's spinning threads do not slow the next one. Figures are medians in
milliseconds. "error" is the relative output error against eager fp32. The verdict compares fxopt
with the fastest rival of the same precision, for int8 among those whose error is no larger.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rivals import FP32, INT8, Builder, Call, Inputs
from tabulate import tabulate
from torch import nn
from zoo import build

import fxopt
from fxopt.cost import find_target, measure

DEFAULT = ("resnet50", "mobilenet_v3_large", "vit_b_16")


@dataclass
class Row:
    """One candidate on one model."""

    model: str
    batch: int
    precision: str
    candidate: str
    milliseconds: float = 0.0
    spread: float = 0.0
    error: float = 0.0
    build_seconds: float = 0.0
    remark: str = ""


def fxopt_exact(model: nn.Module, inputs: Inputs) -> Call:
    fast = fxopt.optimize(model, inputs, progress=_log)
    return lambda: fast(*inputs)


def fxopt_int8(model: nn.Module, inputs: Inputs) -> Call:
    fast = fxopt.optimize(
        model, inputs, passes="cleanup,fold_bn,quantize", calibration=[inputs], progress=_log
    )
    print(fast.report, file=sys.stderr)
    return lambda: fast(*inputs)


def candidates(precisions: list[str]) -> dict[tuple[str, str], Builder]:
    """The builders by (precision, name). Eager fp32 is always among them: errors refer to it."""
    chosen: dict[tuple[str, str], Builder] = {("fp32", "eager"): FP32["eager"]}
    if "fp32" in precisions:
        chosen |= {("fp32", name): builder for name, builder in FP32.items()}
        chosen["fp32", "fxopt"] = fxopt_exact
    if "int8" in precisions:
        chosen |= {("int8", name): builder for name, builder in INT8.items()}
        chosen["int8", "fxopt int8"] = fxopt_int8
    return chosen


def run(name: str, batch: int, precisions: list[str], rounds: int) -> list[Row]:
    """Builds, checks and times every candidate on one model."""
    model, inputs = build(name, batch)
    rows, calls = [], {}
    reference = None
    for (precision, candidate), builder in candidates(precisions).items():
        row = Row(name, batch, precision, candidate)
        rows.append(row)
        start = time.perf_counter()
        try:
            call = builder(model, inputs)
            output = call()
        except Exception as error:  # a rival that fails on a model is a result, not a failure
            row.remark = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            continue
        row.build_seconds = time.perf_counter() - start
        reference = output if reference is None else reference
        row.error = float((output.float() - reference).norm() / reference.norm())
        calls[candidate] = call
        _log(f"{name}: built {candidate} in {row.build_seconds:.0f} s")
    latencies = measure(calls, rounds=rounds, burst=7)
    for row in rows:
        if row.candidate in latencies:
            row.milliseconds = latencies[row.candidate].median
            row.spread = latencies[row.candidate].spread
    return rows


def verdicts(rows: list[Row]) -> list[list[Any]]:
    """Per model and precision: fxopt against the best rival that may be compared with it."""
    lines = []
    for own in (row for row in rows if row.candidate.startswith("fxopt") and row.milliseconds):
        rivals = [
            row
            for row in rows
            if (row.model, row.batch, row.precision) == (own.model, own.batch, own.precision)
            and not row.candidate.startswith("fxopt")
            and row.milliseconds
            and (own.precision == "fp32" or row.error <= own.error)
        ]
        if own.precision == "int8":  # the exact model is a rival too: int8 has to pay
            rivals += [r for r in rows if r.model == own.model and r.precision == "fp32"]
            rivals = [r for r in rivals if not r.candidate.startswith("fxopt") and r.milliseconds]
        best = min(rivals, key=lambda row: row.milliseconds)
        ratio = own.milliseconds / best.milliseconds
        lines.append([own.model, own.precision, own.milliseconds, best.candidate, ratio])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=DEFAULT)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--precision", default="fp32,int8")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    rows: list[Row] = []
    target = find_target("cpu")
    print(f"{target.chip}, {target}, torch {torch.__version__}")
    with torch.no_grad():
        for name in options.models:
            rows += run(name, options.batch, options.precision.split(","), options.rounds)
            _print(rows, name)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    headers = ["model", "precision", "fxopt ms", "best rival", "ratio"]
    print(tabulate(verdicts(rows), headers=headers, floatfmt=".3f"))


def _print(rows: list[Row], model: str) -> None:
    own = sorted((r for r in rows if r.model == model), key=lambda r: r.milliseconds or 1e9)
    table = [
        [
            r.precision,
            r.candidate,
            r.milliseconds,
            r.spread,
            f"{r.error:.1e}",
            r.build_seconds,
            r.remark,
        ]
        for r in own
    ]
    headers = ["precision", "candidate", "ms", "+-", "error", "build s", ""]
    print(f"\n{model}, batch {own[0].batch}")
    print(tabulate(table, headers=headers, floatfmt=".2f"), flush=True)


def _log(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
