"""Schemes of int8 on nets with depthwise convolutions, where careless ones break.

Usage:
    python benchmarks/schemes.py                        both nets, all schemes
    python benchmarks/schemes.py fashion_mobilenet --weight-bits 4

Each row is one setting of `quantize`, scored as simulated in float; needs what accuracy.py needs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

from accuracy import add_cache, load, output_error, quantized
from tabulate import tabulate
from torch import nn
from trained import Images

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
    "MSE, bias correction (default)": {},
    "MSE, GPTQ": {**PLAIN, "rounding": "gptq"},
    "MSE, AdaRound": {**PLAIN, "rounding": "adaround"},
    "MSE, bias correction, equalized by activations": {"equalization": "activations"},
    "MSE, bias correction, GPTQ": {"rounding": "gptq"},
    "all three": {"equalization": "activations", "rounding": "gptq"},
    "all three, AdaRound": {"equalization": "activations", "rounding": "adaround"},
}

HEADERS = ("model", "scheme", "accuracy %", "drop", "images", "output error", "seconds")


def rows_of(
    name: str, model: nn.Module, images: Images, bits: int
) -> Iterator[tuple[str, str, float, float, int, float, float]]:
    """One row for each scheme."""
    before = images.accuracy(model)
    for scheme, settings in SCHEMES.items():
        start = time.perf_counter()
        program = emit(quantized(model, images, weight_bits=bits, **settings))
        seconds = time.perf_counter() - start
        after, error = images.accuracy(program), output_error(program, model, images.x[:500])
        print(f"  {name}: {scheme}: {after:.2f}, {error:.4f}", file=sys.stderr, flush=True)
        yield name, scheme, after, before - after, len(images.x), error, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=NETS)
    parser.add_argument("--weight-bits", type=int, default=8)
    add_cache(parser)
    options = parser.parse_args()
    rows = [
        row
        for model_name in options.models
        for name, model, images in load(model_name, options.cache)
        for row in rows_of(name, model, images, options.weight_bits)
    ]
    print(tabulate(rows, headers=HEADERS, floatfmt=".4f", tablefmt="github"))


if __name__ == "__main__":
    main()
