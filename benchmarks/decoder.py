"""One token of a decoder whose weights have four bits: latency, memory and output error.

Usage:
    python benchmarks/decoder.py
    python benchmarks/decoder.py --layers 24 --width 1024

The decoder is of Llama's architecture, with random weights: 134 million parameters by default.
All ways to run it are timed in turns, in one process. For the memory some are built once more in a
process of its own (fxopt's is loaded from a file): what counts is how much that process grows once
it has run a small model the same way, which loads all libraries.
Needs transformers, torchao, openvino and nncf.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from machine import describe_machine, machine_text, revision
from quiet import quiet
from rivals import int4, openvino, pytorch
from rivals.base import Builder, Call, Inputs
from tabulate import tabulate
from torch import nn

import fxopt
from fxopt.cost import measure

HEADERS = ("weights", "candidate", "ms", "+-", "error", "memory MB", "of fp32's", "build s", "")
PASSES = "cleanup,quantize_weights"
TORCH_ONLY = ("eager", "inductor", "onednn")
_REFERENCE = "eager"
_WEIGHED = (
    "eager", "openvino", "torchao int4", "nncf int4, rest fp32", "fxopt", "fxopt torch-only",
)  # fmt: skip
_ROUNDS, _BURST = 12, 9


@dataclass(frozen=True)
class Shape:
    """Sizes of the decoder."""

    layers: int
    width: int
    words: int


_SMALL = Shape(layers=2, width=256, words=1024)


class Decoder(nn.Module):
    """A causal language model that gives logits for indices of tokens.

    Args:
        shape: Its sizes.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=shape.words,
            hidden_size=shape.width,
            intermediate_size=shape.width * 8 // 3 // 128 * 128,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.width // 64,
            num_key_value_heads=shape.width // 64,
            attn_implementation="sdpa",
        )
        self.model = LlamaForCausalLM(config)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits


def decoder(shape: Shape) -> tuple[Decoder, Inputs]:
    """The model and a token, the same in every process."""
    torch.manual_seed(0)
    return Decoder(shape).eval(), (torch.randint(0, shape.words, (1, 1)),)


def own(model: nn.Module, inputs: Inputs, passes: str = PASSES, **settings: object) -> Fast:
    """fxopt's; the report goes to standard error."""
    fast = fxopt.optimize(model, inputs, passes=passes, progress=_log, **settings)
    print(fast.report, file=sys.stderr)
    return Fast(fast, inputs)


class Fast:
    """A call of an optimized module."""

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        self.module, self._inputs = module, inputs

    def __call__(self) -> torch.Tensor:
        output: torch.Tensor = self.module(*self._inputs)
        return output


CANDIDATES: dict[str, tuple[str, Builder]] = {
    "eager": ("fp32", pytorch.eager),
    "openvino": ("fp32", openvino.fp32),
    "eager bf16": ("bf16", pytorch.eager_bf16),
    "torch.compile bf16": ("bf16", pytorch.compiled_bf16),
    "openvino bf16": ("bf16", openvino.bf16),
    "torchao int4": ("int4", int4.torchao),
    "torchao int4, compiled": ("int4", int4.torchao_compiled),
    "torchao int4, rounding": ("int4", int4.torchao_rounded),
    "torchao int4, rounding, compiled": ("int4", int4.torchao_rounded_compiled),
    "nncf int4, rest fp32": ("int4", int4.nncf_f32),
    "nncf int4, rest bf16": ("int4", int4.nncf_bf16),
    "fxopt": ("int4", own),
    "fxopt torch-only": ("int4", partial(own, backends=list(TORCH_ONLY))),
}


@dataclass
class Built:
    """What came of building a candidate: a call and its output, or a remark."""

    seconds: float
    call: Call | None = None
    output: torch.Tensor | None = None
    remark: str = ""


def run(shape: Shape) -> Iterator[list[object]]:
    """A row for each candidate."""
    model, inputs = decoder(shape)
    built = {name: _build(name, model, inputs) for name in CANDIDATES}
    calls = {name: each.call for name, each in built.items() if each.call is not None}
    times = measure(calls, rounds=_ROUNDS, burst=_BURST)
    memory = {name: _memory_apart(name, shape, calls[name]) for name in _WEIGHED if name in calls}
    expected = built[_REFERENCE].output
    for name, each in built.items():
        row: list[object] = [CANDIDATES[name][0], name]
        if each.call is None:
            yield [*row, None, None, None, None, None, each.seconds, each.remark]
            continue
        error = float((each.output - expected).norm() / expected.norm())
        latency, held = times[name], memory.get(name)
        share = None if held is None else held / memory[_REFERENCE]
        row += [latency.median, latency.spread, error, held, share]
        yield [*row, each.seconds, _chosen(each.call)]


def _build(name: str, model: nn.Module, inputs: Inputs) -> Built:
    """Builds a candidate; one that fails is a result too."""
    built, start = Built(0.0), time.perf_counter()
    try:
        built.call = CANDIDATES[name][1](model, inputs)
        built.output = built.call().float().clone()
    except Exception as error:
        built = Built(0.0, remark=f"{type(error).__name__}: {str(error).strip()[:80]}")
    built.seconds = time.perf_counter() - start
    _log(f"{name}: {built.remark or f'{built.seconds:.0f} s'}")
    return built


def _chosen(call: Call) -> str:
    if not isinstance(call, Fast):
        return ""
    chosen = call.module.report.regions[0].chosen
    return f"{chosen.backend} ({', '.join(f'{n} {kind}' for kind, n in chosen.precisions.items())})"


def _memory_apart(name: str, shape: Shape, call: Call) -> float:
    """Megabytes that a candidate takes in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with (
        TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=spawn, initializer=quiet) as process,
    ):
        files: tuple[Path, ...] = ()
        if isinstance(call, Fast):
            runtime = call.module.report.regions[0].chosen.backend.split()[0]
            small = own(*decoder(_SMALL), backends=[runtime])
            files = (_saved(small, folder, "small"), _saved(call, folder, "model"))
        return process.submit(_memory, name, shape, files).result()


def _saved(call: Fast, folder: str, name: str) -> Path:
    path = Path(folder) / name
    fxopt.save(call.module, path)
    return path


@torch.no_grad()
def _memory(name: str, shape: Shape, files: Sequence[Path]) -> float:
    """Megabytes that this process has more once a candidate is built, or loaded, and was called.

    Args:
        name: Of the candidate.
        shape: Of the decoder.
        files: A small decoder and this one, saved; where there are none, both are built.
    """
    small, large = files or (None, None)
    openvino.fp32(*decoder(_SMALL))()
    _called(name, _SMALL, small)
    before = _resident()
    call = _called(name, shape, large)
    after = _resident()
    del call
    return after - before


def _called(name: str, shape: Shape, file: Path | None) -> Call:
    call = CANDIDATES[name][1](*decoder(shape)) if file is None else _loaded(file)
    for _ in range(3):
        call()
    return call


def _loaded(path: Path) -> Call:
    return Fast(fxopt.load(path), (torch.zeros(1, 1, dtype=torch.long),))


def _resident() -> float:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _log(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768, help="a multiple of 128")
    parser.add_argument("--words", type=int, default=32000)
    options = parser.parse_args()
    quiet()
    shape = Shape(options.layers, options.width, options.words)
    parameters = sum(p.numel() for p in decoder(shape)[0].parameters())
    with torch.no_grad():
        rows = list(run(shape))
    print(f"{parameters / 1e6:.0f} million parameters; commit {revision()}")
    print(f"{machine_text(describe_machine())}\n")
    print(tabulate(rows, headers=HEADERS, floatfmt=".3g", tablefmt="github"))


if __name__ == "__main__":
    main()
