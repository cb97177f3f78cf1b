"""How far from the machine's limit each model runs.

Usage:
    python benchmarks/peak.py                 the machine's peaks alone
    python benchmarks/peak.py study.json      added to the file, and each model's share

The peak of a precision is the fastest of a few matrix products, linear layers and convolutions,
by torch and by whatever else is installed, in billion multiply-adds a second (GMAC/s). Of bfloat16
only where the CPU has instructions for it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from quiet import quiet
from rivals import Call, openvino, pt2e, pytorch
from rivals.inductor import Compiled
from rows import OWN, PRECISIONS, Results, Row, load
from tabulate import tabulate
from torch import nn
from zoo import build

from fxopt.cost import find_target, measure

ROWS_AND_WIDTHS = ((512, 1024), (1024, 1024), (2048, 2048))
"""Of the linear layers and matrix products."""

CHANNELS_AND_SIDES = ((64, 56), (128, 28), (256, 28), (256, 56))
"""Of the images, in batches of 4, that 3x3 convolutions go over."""

DEPTH = 4
"""Layers in a row: between them tensors stay int8, and are not converted from and to fp32."""

ROUNDS = 5

Builder = Callable[[], Call]


# --- the machine ----------------------------------------------------------------------------


def measure_peaks() -> dict[str, dict[str, Any]]:
    """For each precision that the machine has the highest rate, and what reached it."""
    calls, macs = {}, {}
    contenders = [each for each in _contenders() if each[0] in _precisions()]
    for index, (precision, name, count, builder) in enumerate(contenders, 1):
        print(f"  [{index}/{len(contenders)}] {precision} {name}", file=sys.stderr, flush=True)
        try:
            calls[precision, name] = builder()
        except Exception as error:  # a runtime that is missing, or cannot do it, sets no peak
            print(f"  {type(error).__name__}: {error}", file=sys.stderr)
        macs[precision, name] = count
    print(f"  measuring {len(calls)}", file=sys.stderr, flush=True)
    for call in calls.values():
        if isinstance(call, Compiled):
            call.warm()  # what was exported later has reset Dynamo
    best: dict[str, dict[str, Any]] = {
        precision: {"gmacs": 0.0, "by": "nothing ran"} for precision in _precisions()
    }
    for (precision, name), latency in measure(calls, rounds=ROUNDS).items():
        # of the fastest call: a peak is what the machine can do, not what it does mostly
        rate = macs[precision, name] / min(latency.milliseconds) / 1e6
        print(f"  {precision} {name}: {rate:.0f} GMAC/s", file=sys.stderr, flush=True)
        if rate > best[precision]["gmacs"]:
            best[precision] = {"gmacs": rate, "by": name}
    return best


def _precisions() -> list[str]:
    """Those that the CPU has instructions for: without, bfloat16 takes minutes."""
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(find_target("cpu").features)
    return [precision for precision in PRECISIONS if precision != "bf16" or has_bf16]


def _contenders() -> Iterator[tuple[str, str, int, Builder]]:
    """Precision, name, multiply-adds and builder of all that may set the peak."""
    for rows, width in ROWS_AND_WIDTHS:
        size, macs = f"{rows}x{width}x{width}", rows * width * width
        yield "fp32", f"torch mm {size}", macs, _product(rows, width, torch.float32)
        yield "bf16", f"torch mm {size}", macs, _product(rows, width, torch.bfloat16)
        layers, x = _chain(lambda width=width: nn.Linear(width, width)), torch.randn(rows, width)
        yield from _built(f"linear {size}", DEPTH * macs, layers, x)
    for channels, side in CHANNELS_AND_SIDES:
        layers = _chain(lambda channels=channels: nn.Conv2d(channels, channels, 3, padding=1))
        x = torch.randn(4, channels, side, side)
        what = f"3x3 convolution of {channels} channels on {side}x{side}"
        yield from _built(what, DEPTH * x.numel() * channels * 9, layers, x)


def _chain(layer: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(*(m for _ in range(DEPTH) for m in (layer(), nn.ReLU()))).eval()


def _built(
    what: str, macs: int, layers: nn.Module, x: torch.Tensor
) -> Iterator[tuple[str, str, int, Builder]]:
    ways = {
        "fp32": (("torch.compile", pytorch.compiled), ("openvino", openvino.fp32)),
        "bf16": (("torch.compile", pytorch.compiled_bf16), ("openvino", openvino.bf16)),
        "int8": (("torchao pt2e", pt2e.int8), ("openvino", openvino.int8_fp32)),
    }
    for precision, builders in ways.items():
        for name, builder in builders:
            yield precision, f"{name} {what}", macs, partial(builder, layers, (x,))


def _product(rows: int, width: int, dtype: torch.dtype) -> Builder:
    a, b = torch.randn(rows, width, dtype=dtype), torch.randn(width, width, dtype=dtype)
    return lambda: lambda: a @ b


# --- the models -----------------------------------------------------------------------------


def multiply_adds(name: str) -> int:
    """Multiply-adds of matrix products and convolutions in one call at batch 1."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model, inputs = build(name, 1)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # fused attention and LSTM operators would not be counted
        plain = torch.backends.mkldnn.flags(enabled=False)
        with sdpa_kernel(SDPBackend.MATH), plain, FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def shares(results: Results) -> Iterator[list[str]]:
    """Lines of the table: model, batch, GMAC of a call, and each precision's share of its peak."""
    measured = [r for r in results.rows if r.measured and str(r.machine) in results.peaks]
    own = [row for row in measured if row.kind == OWN]
    counts = {model: multiply_adds(model) for model in dict.fromkeys(row.model for row in own)}
    for model, batch in results.cases():
        rows = {r.precision: r for r in own if (r.model, r.batch) == (model, batch)}
        if rows:
            macs = counts[model] * batch
            found = [_share(rows[p], macs, results) if p in rows else "-" for p in PRECISIONS]
            yield [model, str(batch), f"{macs / 1e9:.2f}", *found]


def _share(row: Row, macs: int, results: Results) -> str:
    """What a row reaches of the peak of its precision, on its machine."""
    peak = results.peaks[str(row.machine)].get(row.precision, {}).get("gmacs")
    return f"{macs / row.milliseconds / 1e6 / peak:.0%}" if peak else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, help="a JSON file of latency.py")
    options = parser.parse_args()
    quiet()
    with torch.no_grad():
        rates = measure_peaks()
        lines = [[precision, rate["gmacs"], rate["by"]] for precision, rate in rates.items()]
        print(tabulate(lines, headers=["precision", "GMAC/s", "by"], floatfmt=".1f"))
        if options.results is None:
            return
        results = load(options.results)
        results.peaks[str(results.place(describe_machine()))] = rates
        results.save(options.results)
        print(tabulate(list(shares(results)), headers=["model", "batch", "GMAC", *PRECISIONS]))


if __name__ == "__main__":
    main()
