"""How much of a model zoo is optimized, and how exactly: prints one row a model.

Usage:
    python benchmarks/coverage.py                                  all of torchvision, float64
    python benchmarks/coverage.py --zoo timm --only 'resnet*'      another zoo, some names
    python benchmarks/coverage.py --dtype float32 --out f32.json   results are kept, runs resume

Weights and batch-norm statistics are random. Only exact passes run. "error" is the largest
relative error of an output against the model's own, at the example batch size and at another one.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

import fxopt
from fxopt.errors import FxoptError
from fxopt.frontend import normalize_inputs, with_batch
from fxopt.frontend.capture import run_model
from fxopt.frontend.comparing import relative_error
from fxopt.report import Report

LARGEST = 300_000_000
"""Models with more parameters are left out."""

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Names = list[str] | None
Build = Callable[[], tuple[nn.Module, Inputs]]


@dataclass
class Row:
    """What is reported of one model."""

    name: str
    captured: str
    batch: str = "-"
    nodes: int = 0
    seconds: float = 0.0
    error: float | None = None
    passes: str = ""
    remark: str = ""


# --- what is measured -----------------------------------------------------------------------


def check(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], backends: Names) -> Row:
    """Optimizes a model with exact passes alone and measures the error of the result."""
    name, inputs = type(model).__name__, (args, kwargs)
    try:
        fast = fxopt.optimize(model, kwargs or args, backends=backends)
    except FxoptError as error:
        return Row(name, "failed", remark=error.what)
    report = fast.report
    parts = [note for note in report.notes if note.startswith("not captured whole")]
    batch = "parts" if parts else report.inputs.rpartition(", ")[2].removesuffix(" batch")
    error, remarks = _error(model, fast, inputs, other=batch == "any"), _rolled_back(report)
    if parts and error is not None and error > _DIFFERENT:
        remarks.append(f"other boxes were selected (error {error:.0e}): raw outputs are compared")
        error = _raw_error(model, fast, inputs)
    return Row(
        name,
        "parts" if parts else "whole",
        batch,
        sum(region.operations for region in report.regions),
        error=error,
        passes=report.recipe,
        remark="; ".join([*remarks, *report.notes]),
    )


_DIFFERENT = 1e-4  # what selects boxes is discontinuous: one that differs makes the error large


def _rolled_back(report: Report) -> list[str]:
    """An exact pass that is rolled back has a fault, even though the result is right."""
    return [f"ROLLED BACK {r.name}: {r.reason}" for r in report.passes if r.status == "rolled back"]


def _error(model: nn.Module, fast: nn.Module, inputs: Inputs, other: bool) -> float | None:
    """The largest relative error at one or two batch sizes, None when an output is not finite."""
    worst = 0.0
    training = model.training
    model.eval()
    for args, kwargs in [inputs, with_batch(inputs, 3)] if other else [inputs]:
        expected = pytree.tree_leaves(run_model(model, (args, kwargs)))
        with torch.no_grad():
            actual = pytree.tree_leaves(fast(*args, **kwargs))
        error = _largest(actual, expected)
        if error is None:
            return None
        worst = max(worst, error)
    model.train(training)
    return worst


def _raw_error(model: nn.Module, fast: fxopt.OptimizedModule, inputs: Inputs) -> float | None:
    """The error of what a detector computes before it selects boxes, which rounding can change."""
    expected, actual = _raw(model, model, inputs), _raw(fast, fast.fxopt_python.fxopt_model, inputs)
    return _largest(actual, expected)


def _raw(called: nn.Module, owner: nn.Module, inputs: Inputs) -> list[Any]:
    seen: list[Any] = []
    found = [owner.get_submodule(name) for name in _RAW if _has(owner, name)]
    hooks = [m.register_forward_hook(lambda *call: seen.append(call[2])) for m in found]
    run_model(called.eval(), inputs)
    for hook in hooks:
        hook.remove()
    return pytree.tree_leaves(seen)


_RAW = ("backbone", "rpn.head", "head")


def _has(owner: nn.Module, name: str) -> bool:
    return name in dict(owner.named_modules())


def _largest(actual: list[Any], expected: list[Any]) -> float | None:
    worst = 0.0
    for have, want in zip(actual, expected, strict=True):
        if isinstance(want, torch.Tensor):
            if want.is_floating_point() and not bool(want.isfinite().all()):
                return None
            worst = max(worst, _tensor_error(have, want))
    return worst


def _tensor_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return relative_error(actual, expected) if actual.shape == expected.shape else float("inf")


# --- the zoos -------------------------------------------------------------------------------


def torchvision_zoo(dtype: torch.dtype, largest: int = LARGEST) -> Iterator[tuple[str, Build]]:
    """Every model of torchvision that is neither quantized nor too large."""
    from torchvision.models import get_model_weights, list_models

    for name in list_models():
        weights = next(iter(get_model_weights(name)), None)
        size = weights.meta["num_params"] if weights is not None else 0
        if not name.startswith("quantized_") and size <= largest:
            yield name, lambda name=name: _torchvision(name, dtype)  # type: ignore[misc]


def _torchvision(name: str, dtype: torch.dtype) -> tuple[nn.Module, Inputs]:
    from torchvision.models import get_model, get_model_builder

    kind = get_model_builder(name).__module__.split(".")[2]
    settings: dict[str, Any] = {}
    if kind in ("detection", "segmentation"):
        settings["weights_backbone"] = None
    if kind == "detection" and not name.startswith("ssd"):  # the others resize to 800 pixels
        settings |= {"min_size": 160, "max_size": 224}
    if "rcnn" in name:  # their heads run once for every box
        settings |= {"rpn_post_nms_top_n_test": 30, "box_detections_per_img": 10}
    model = _settled(get_model(name, weights=None, **settings), dtype)
    inputs = _torchvision_inputs(name, kind, dtype)
    if kind == "detection":
        _spread_scores(model, inputs)
    return model, (inputs, {})


def _spread_scores(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Scales the layers of a detector's heads so that their outputs have unit variance.

    Those of a fresh one are so small that all scores nearly tie, and which boxes are kept depends
    on rounding; a trained one tells its boxes apart.
    """

    def scale(layer: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
        factor = 1 / output.std()
        layer.weight.data.mul_(factor)
        if layer.bias is not None:
            layer.bias.data.mul_(factor)
        return output * factor

    heads = [child for name, child in model.named_children() if name in _HEADS]
    layers = (m for head in heads for m in head.modules() if isinstance(m, _SCALED))
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    with torch.no_grad():
        model.eval()(*inputs)
    for hook in hooks:
        hook.remove()


_HEADS = ("rpn", "roi_heads", "head")
_SCALED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def _torchvision_inputs(name: str, kind: str, dtype: torch.dtype) -> tuple[Any, ...]:
    if kind == "detection":
        return ([_random(3, 256, 320, dtype=dtype), _random(3, 240, 320, dtype=dtype)],)
    if kind == "optical_flow":
        return _random(1, 3, 128, 128, dtype=dtype), _random(1, 3, 128, 128, dtype=dtype)
    if kind == "video":
        large = name.startswith(("mvit", "s3d"))  # these take no smaller ones
        return (_random(1, 3, 16 if large else 8, *[224 if large else 64] * 2, dtype=dtype),)
    fixed = ("vit", "maxvit", "inception")  # the others take any size, and small ones are fast
    size = 224 if name.startswith(fixed) else 96
    return (_random(1, 3, size, size, dtype=dtype),)


def timm_zoo(dtype: torch.dtype) -> Iterator[tuple[str, Build]]:
    """Every model of timm; inputs are what the model offers."""
    import timm

    for name in timm.list_models():
        yield name, lambda name=name: _timm(name, dtype)  # type: ignore[misc]


def _timm(name: str, dtype: torch.dtype) -> tuple[nn.Module, Inputs]:
    import timm

    model = _settled(timm.create_model(name, pretrained=False), dtype)
    inputs = normalize_inputs(model)
    assert inputs is not None
    return model, inputs


_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 128,
}
_SMALL_IMAGE = {**_SMALL, "image_size": 32, "patch_size": 8}
_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "bert": _SMALL,
    "roberta": _SMALL,
    "electra": {**_SMALL, "embedding_size": 32},
    "albert": {**_SMALL, "embedding_size": 16},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 128},
    "mpnet": _SMALL,
    "deberta-v2": _SMALL,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 128, "use_cache": False},
    "gpt_neox": {**_SMALL, "use_cache": False},
    "llama": {**_SMALL, "use_cache": False},
    "qwen2": {**_SMALL, "num_key_value_heads": 2, "use_cache": False},
    "modernbert": {**_SMALL, "pad_token_id": 0},
    "vit": _SMALL_IMAGE,
    "deit": _SMALL_IMAGE,
    "beit": _SMALL_IMAGE,
    "dinov2": _SMALL_IMAGE,
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "segformer": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "swin": {
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "image_size": 32,
        "patch_size": 4,
        "window_size": 4,
    },
}


def transformers_zoo(dtype: torch.dtype) -> Iterator[tuple[str, Build]]:
    """Small random models of well-known architectures of transformers."""
    for name in _TRANSFORMERS:
        yield name, lambda name=name: _transformers(name, dtype)  # type: ignore[misc]


def _transformers(name: str, dtype: torch.dtype) -> tuple[nn.Module, Inputs]:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(name, **_TRANSFORMERS[name])
    model = _settled(AutoModel.from_config(config), dtype)
    if model.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 64)
        return model, ((), {"pixel_values": _random(2, 3, size, size, dtype=dtype)})
    ids = torch.randint(5, 120, (2, 16))
    return model, ((), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _random(*size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*size, dtype=dtype)


def _settled(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Gives a fresh model batch-norm statistics such as a trained one has."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        mean, variance = (getattr(module, f"running_{k}", None) for k in ("mean", "var"))
        if isinstance(mean, torch.Tensor) and isinstance(variance, torch.Tensor):
            mean.copy_(torch.randn(mean.shape, generator=generator) * 0.1)
            variance.copy_(torch.rand(variance.shape, generator=generator) + 0.5)
    return model.to(dtype)


ZOOS = {"torchvision": torchvision_zoo, "timm": timm_zoo, "transformers": transformers_zoo}


# --- the run and the table ------------------------------------------------------------------


def run(cases: Iterator[tuple[str, Build]], out: Path | None, backends: Names) -> list[Row]:
    """Checks every case that the results file does not hold yet, and keeps the file current."""
    rows = [Row(**row) for row in json.loads(out.read_text())] if out and out.exists() else []
    done = {row.name for row in rows}
    for name, build in cases:
        if name in done:
            continue
        rows.append(_run_one(name, build, backends))
        print(_line(rows[-1]), file=sys.stderr, flush=True)
        if out:
            out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
        gc.collect()
    return rows


def _run_one(name: str, build: Build, backends: Names) -> Row:
    torch.manual_seed(0)
    start = time.perf_counter()
    try:
        model, (args, kwargs) = build()
        row = check(model, args, kwargs, backends)
    except Exception as error:  # whatever happens, the next model gets its turn
        row = Row(name, "crashed", remark=f"{type(error).__name__}: {error}")
    row.name, row.seconds = name, round(time.perf_counter() - start, 1)
    return row


def _line(row: Row) -> str:
    error = "nan" if row.error is None else f"{row.error:.1e}"
    cells = (
        f"{row.name:36} {row.captured:8} {row.batch:8} {row.nodes:6} {row.seconds:7.1f} {error:>9}"
    )
    return f"{cells}  {row.remark[:120]}"


def table(rows: list[Row]) -> str:
    """The rows and a summary, as text."""
    head = f"{'model':36} {'captured':8} {'batch':8} {'nodes':>6} {'seconds':>7} {'error':>9}"
    counts = {
        kind: sum(r.captured == kind for r in rows) for kind in sorted({r.captured for r in rows})
    }
    dynamic = sum(r.batch == "any" for r in rows)
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    tail = f"{len(rows)} models: {summary}; {dynamic} with a dynamic batch"
    return "\n".join([head, *map(_line, rows), tail])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--zoo", choices=ZOOS, default="torchvision")
    parser.add_argument("--only", default="*", help="shell patterns of names, with commas between")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--backends", default="eager", help="names, with commas between, or all")
    parser.add_argument("--out", type=Path, help="JSON of results; models in it are skipped")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = ZOOS[options.zoo](getattr(torch, options.dtype))
    patterns = options.only.split(",")
    chosen = ((n, build) for n, build in cases if any(fnmatch.fnmatch(n, p) for p in patterns))
    backends = None if options.backends == "all" else options.backends.split(",")
    print(table(run(chosen, options.out, backends)))


if __name__ == "__main__":
    main()
