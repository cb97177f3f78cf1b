"""Pruned and trained back, beside Torch-Pruning: accuracy and latency at fewer multiply-adds.

Usage:
    python benchmarks/pruning.py                            both Fashion-MNIST nets, 2 and 4 times
    python benchmarks/pruning.py fashion_resnet --fewer 2 --epochs 1 --seeds 0

All are brought to as few multiply-adds, or 3 % more where their multiples of channels ask for it,
and trained with the same optimizer on the same data for as many epochs, a copy for each seed, which
decides the order of the data. "plain" is right after
pruning; "fitted" after fxopt has fitted what is left to the old outputs on the calibration data,
without labels. Latencies are of one image in float32, measured in turns. Trainings are kept in
--cache, from where a run goes on. Needs `apt-get install dataset-fashion-mnist` and
`pip install torch-pruning`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accuracy import add_cache
from quiet import quiet
from tabulate import tabulate
from tasks import TASKS, Task
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fxopt
from fxopt.cost import find_target, measure
from fxopt.cost.arithmetic import multiply_adds
from fxopt.emit import emit
from fxopt.frontend import capture_program
from fxopt.ir import Program
from fxopt.passes import Calibration, Context, Pass
from fxopt.training import Trainer, Training
from fxopt_prune import Prune
from fxopt_prune.select import Scope
from fxopt_recover import Distill, Finetune

NETS = ("fashion_resnet", "fashion_mobilenet")
BACKENDS = ("openvino", "onnxruntime")
PASSES: dict[str, Pass] = {"finetune": Finetune(), "distill": Distill()}
HEADERS = ("model", "who", "multiply-adds", "plain %", "fitted %", "trained %, by seed", "mean %",
           "eager ms", *(f"{name} ms" for name in BACKENDS))  # fmt: skip


@dataclass
class Shrunk:
    """A smaller program, its scores before training, and of what each seed made of it."""

    program: Program
    plain: float | None = None
    fitted: float | None = None
    trained: list[float] = field(default_factory=list)


def rows_of(task: Task, fewer: float, options: argparse.Namespace) -> Iterator[list[Any]]:
    """The original, then each way at so many times fewer multiply-adds."""
    original = captured(task, task.model)
    aim = 1.03 * work(original) / fewer
    ways: dict[str, Callable[[], Shrunk]] = {
        "original": lambda: Shrunk(original, trained=[score_of(task, original)]),
        "torch-pruning GroupNorm, finetuned": lambda: rival(task, aim, options),
    }
    for name in options.passes:
        ways[f"fxopt prune, {name}"] = partial(own, task, original, aim, options, PASSES[name])
    found = {name: way() for name, way in ways.items()}
    times = latencies(task, {name: each.program for name, each in found.items()}, rounds=40)
    for name, each in found.items():
        by_seed = " ".join(f"{score:.2f}" for score in each.trained)
        scores = (each.plain, each.fitted, by_seed, statistics.mean(each.trained))
        milliseconds = [times[f"{name}, {where}"] for where in ("eager", *BACKENDS)]
        yield [f"{task.name}, {fewer:g}x", name, work(each.program), *scores, *milliseconds]


def score_of(task: Task, program: Program) -> float:
    return task.score(task.outputs(emit(program)))


def captured(task: Task, model: nn.Module) -> Program:
    return capture_program(model.eval(), task.example, {}).clone()


def work(program: Program) -> int:
    """Multiply-adds of one image: an example batch of one is captured as two."""
    return sum(multiply_adds(program).values()) // 2


def work_of_module(model: nn.Module, example: Any) -> float:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(*example)
    return counter.get_total_flops() / 2


def train(
    task: Task,
    program: Program,
    item: Pass,
    original: Program,
    epochs: int,
    seed: int = 0,
    folder: Path | None = None,
) -> None:
    """Trains a program in place, or goes on with what is in ``folder``."""
    training = Training(
        task.training, epochs=epochs, optimizer="sgd", learning_rate=0.02, weight_decay=5e-4
    )
    show = partial(print, "  ", file=sys.stderr, flush=True)
    trainer = Trainer(training, seed=seed, progress=show, folder=folder)
    program.module.to(memory_format=torch.channels_last)  # depthwise layers train 1.5 times as fast
    item.run(program, Context(find_target("cpu"), training=trainer, original=original))
    program.module.to(memory_format=torch.contiguous_format)


def own(
    task: Task, original: Program, aim: float, options: argparse.Namespace, item: Pass
) -> Shrunk:
    """Pruned by fxopt, fitted on the calibration data, and trained."""
    found = shrunk(task, original, aim, options.round_to, options.scope)
    kept = kept_in(options, task, aim, f"fxopt_{options.scope}_{item.info.name}")
    return trained(task, found, item, original, options, kept)


def shrunk(
    task: Task, original: Program, aim: float, round_to: int, scope: Scope = "layer"
) -> Shrunk:
    """Pruned by fxopt and fitted on the calibration data."""
    context = Context(
        find_target("cpu"), calibration=Calibration(task.calibration, original.signature)
    )

    def pruned(ratio: float, fit: bool = False) -> Program:
        program = original.clone()
        Prune(ratio, scope=scope, reconstruct=fit, round_to=round_to).run(program, context)
        return program

    share = 1 - aim / work(original)
    ratio = share if scope == "work" else bisected(lambda ratio: work(pruned(ratio)), aim)
    program = pruned(ratio, fit=True)
    return Shrunk(program, score_of(task, pruned(ratio)), score_of(task, program))


def rival(task: Task, aim: float, options: argparse.Namespace) -> Shrunk:
    """Pruned by Torch-Pruning with its GroupNorm importance, and trained the same way."""
    import torch_pruning

    def pruned(ratio: float) -> nn.Module:
        model = copy.deepcopy(task.model)
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1:]
        pruner = torch_pruning.pruner.BasePruner(
            model,
            task.example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=last,
        )
        pruner.step()
        return model

    ratio = bisected(lambda ratio: work_of_module(pruned(ratio), task.example), aim)
    program = captured(task, pruned(ratio))
    found = Shrunk(program, score_of(task, program))
    kept = kept_in(options, task, aim, "torch_pruning")
    return trained(task, found, Finetune(), program, options, kept)


def trained(
    task: Task, found: Shrunk, item: Pass, teacher: Program, options: argparse.Namespace, kept: Path
) -> Shrunk:
    """A copy trained for each seed; the last one stands for all in what follows."""
    for seed in options.seeds:
        program = found.program.clone()
        train(task, program, item, teacher, options.epochs, seed, checkpoints(kept / str(seed)))
        found.trained.append(score_of(task, program))
        print(f"  {kept.name}: seed {seed}: {found.trained[-1]:.2f}", file=sys.stderr, flush=True)
    found.program = program
    return found


def kept_in(options: argparse.Namespace, task: Task, aim: float, who: str) -> Path:
    """Where the checkpoints of trainings go; they say themselves of what they are."""
    return Path(options.cache) / f"{task.name}_{aim:.0f}_{who}"


def checkpoints(folder: Path) -> Path:
    """A folder for the checkpoints of a training, from where a run goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def bisected(cost: Callable[[float], float], aim: float) -> float:
    """The smallest ratio that does not cost more than ``aim``."""
    low, high = 0.0, 0.95
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) <= aim else (middle, high)
    return high


def latencies(task: Task, programs: dict[str, Program], rounds: int = 8) -> dict[str, float]:
    """Medians in milliseconds, eager and on each backend."""
    x = task.example
    calls: dict[str, Callable[[], object]] = {}
    for name, program in programs.items():
        module = emit(program)
        calls[f"{name}, eager"] = torch.inference_mode()(partial(module, *x))
        for backend in BACKENDS:
            fast = fxopt.optimize(module, x, passes="cleanup,fold_bn", backends=[backend])
            calls[f"{name}, {backend}"] = partial(fast, *x)
    times = measure(calls, rounds=rounds, burst=15)
    return {name: latency.median for name, latency in times.items()}


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=NETS)
    parser.add_argument("--fewer", type=float, nargs="*", default=[2.0, 4.0])
    parser.add_argument("--passes", nargs="+", choices=PASSES, default=list(PASSES))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scope", choices=("layer", "work"), default="work", help="of fxopt")
    parser.add_argument(
        "--round-to", type=int, default=0, help="channels of fxopt's; 0 is its default"
    )
    add_cache(parser)
    options = parser.parse_args()
    rows = []
    for name in options.models:
        for task in TASKS[name](options.cache):
            for fewer in options.fewer:
                rows += list(rows_of(task, fewer, options))
                print(tabulate(rows, headers=HEADERS, tablefmt="github"), flush=True)
    print(tabulate(rows, headers=HEADERS, floatfmt=".4g", tablefmt="github"))


if __name__ == "__main__":
    main()
