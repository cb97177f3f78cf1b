"""How much of a model zoo is captured, and how exactly: prints one row a model.

Usage:
    python benchmarks/coverage.py                                  all of torchvision, float64
    python benchmarks/coverage.py --zoo timm --only 'resnet*'      another zoo, some names
    python benchmarks/coverage.py --dtype float32 --out f32.json   results are kept, runs resume

Weights and batch-norm statistics are random. "error" is the largest relative error of an output
against the model's own, at the example batch size and at another one.
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

from fxopt.errors import FxoptError
from fxopt.frontend import (
    PartialCapture,
    capture_parts,
    capture_program,
    normalize_inputs,
    with_batch,
)
from fxopt.frontend.capture import run_model
from fxopt.frontend.comparing import relative_error
from fxopt.ir import Program

LARGEST = 300_000_000
"""Models with more parameters are left out."""

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
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
    remark: str = ""


# --- what is measured -----------------------------------------------------------------------


def check(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Row:
    """Captures a model, whole or in parts, and measures the error of the result."""
    name = type(model).__name__
    try:
        return _check_whole(name, model, (args, kwargs))
    except FxoptError as error:
        reason = error.what
    try:
        return _check_parts(name, model, (args, kwargs), reason)
    except FxoptError as error:
        return Row(name, "failed", remark=f"{reason}; in parts: {error.what}")


def _check_whole(name: str, model: nn.Module, inputs: Inputs) -> Row:
    program = capture_program(model, *inputs)
    program.verify()
    error = _error(model, lambda i: program.call(*i[0], **i[1]), inputs, program.signature.batch)
    batch = "dynamic" if program.signature.batch else "static"
    remark = "; ".join(program.notes)
    return Row(name, "whole", batch, len(program.nodes), error=error, remark=remark)


def _check_parts(name: str, model: nn.Module, inputs: Inputs, reason: str) -> Row:
    partial = capture_parts(model, *inputs)
    for part, program in partial.parts.items():
        program.verify()
        partial.install(part, Called(program))
    error = _error(model, lambda i: partial.model(*i[0], **i[1]), inputs, batch=False)
    nodes = sum(len(program.nodes) for program in partial.parts.values())
    return Row(
        name,
        "parts",
        _part_batches(partial),
        nodes,
        error=error,
        remark=_parts_remark(partial, reason),
    )


def _part_batches(partial: PartialCapture) -> str:
    dynamic = sum(program.signature.batch for program in partial.parts.values())
    return f"{dynamic}/{len(partial.parts)}"


def _parts_remark(partial: PartialCapture, reason: str) -> str:
    python = ", ".join(name for name, _ in partial.python) or "nothing else"
    return f"parts {', '.join(partial.parts)}; Python: {python}; {reason}"


class Called(nn.Module):
    """A program as a module with the user's calling convention."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.module = program.module
        self._program = program

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._program.call(*args, **kwargs)


def _error(
    model: nn.Module, call: Callable[[Inputs], Any], inputs: Inputs, batch: bool
) -> float | None:
    """The largest relative error, None when an output is not finite."""
    worst = 0.0
    training = model.training
    model.eval()
    for tried in [inputs, with_batch(inputs, 3)] if batch else [inputs]:
        expected = pytree.tree_leaves(run_model(model, tried))
        with torch.no_grad():
            actual = pytree.tree_leaves(call(tried))
        for have, want in zip(actual, expected, strict=True):
            if isinstance(want, torch.Tensor):
                if want.is_floating_point() and not bool(want.isfinite().all()):
                    return None
                worst = max(worst, _tensor_error(have, want))
    model.train(training)
    return worst


def _tensor_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return relative_error(actual, expected) if actual.shape == expected.shape else float("inf")


# --- the zoos -------------------------------------------------------------------------------


def torchvision_zoo(dtype: torch.dtype) -> Iterator[tuple[str, Build]]:
    """Every model of torchvision that is neither quantized nor too large."""
    from torchvision.models import get_model_weights, list_models

    for name in list_models():
        weights = next(iter(get_model_weights(name)), None)
        size = weights.meta["num_params"] if weights is not None else 0
        if not name.startswith("quantized_") and size <= LARGEST:
            yield name, lambda name=name: _torchvision(name, dtype)  # type: ignore[misc]


def _torchvision(name: str, dtype: torch.dtype) -> tuple[nn.Module, Inputs]:
    from torchvision.models import get_model, get_model_builder

    kind = get_model_builder(name).__module__.split(".")[2]
    settings: dict[str, Any] = {}
    if kind in ("detection", "segmentation"):
        settings["weights_backbone"] = None
    if kind == "detection" and not name.startswith("ssd"):  # the others resize to 800 pixels
        settings |= {"min_size": 160, "max_size": 224}
    model = _settled(get_model(name, weights=None, **settings), dtype)
    return model, (_torchvision_inputs(name, kind, dtype), {})


def _torchvision_inputs(name: str, kind: str, dtype: torch.dtype) -> tuple[Any, ...]:
    if kind == "detection":
        return ([_random(3, 256, 320, dtype=dtype), _random(3, 240, 320, dtype=dtype)],)
    if kind == "optical_flow":
        return _random(1, 3, 128, 128, dtype=dtype), _random(1, 3, 128, 128, dtype=dtype)
    if kind == "video":
        large = name.startswith(("mvit", "s3d"))
        return (_random(1, 3, 16 if large else 8, *[224 if large else 112] * 2, dtype=dtype),)
    size = 128 if kind == "segmentation" else 224
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


def run(cases: Iterator[tuple[str, Build]], out: Path | None) -> list[Row]:
    """Checks every case that the results file does not hold yet, and keeps the file current."""
    rows = [Row(**row) for row in json.loads(out.read_text())] if out and out.exists() else []
    done = {row.name for row in rows}
    for name, build in cases:
        if name in done:
            continue
        rows.append(_run_one(name, build))
        print(_line(rows[-1]), file=sys.stderr, flush=True)
        if out:
            out.write_text(json.dumps([asdict(row) for row in rows], indent=1))
        gc.collect()
    return rows


def _run_one(name: str, build: Build) -> Row:
    torch.manual_seed(0)
    start = time.perf_counter()
    try:
        model, (args, kwargs) = build()
        row = check(model, args, kwargs)
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
    dynamic = sum(r.batch == "dynamic" for r in rows)
    summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    tail = f"{len(rows)} models: {summary}; {dynamic} with a dynamic batch"
    return "\n".join([head, *map(_line, rows), tail])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--zoo", choices=ZOOS, default="torchvision")
    parser.add_argument("--only", default="*", help="a shell pattern of names")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--out", type=Path, help="JSON of results; models in it are skipped")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = ZOOS[options.zoo](getattr(torch, options.dtype))
    chosen = ((name, build) for name, build in cases if fnmatch.fnmatch(name, options.only))
    print(table(run(chosen, options.out)))


if __name__ == "__main__":
    main()
