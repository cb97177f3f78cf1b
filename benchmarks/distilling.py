"""Distillation beside plain fine-tuning: the same pruned net, data, epochs and seeds.

Usage:
    python benchmarks/distilling.py                      both Fashion-MNIST nets, three seeds
    python benchmarks/distilling.py fashion_resnet --seeds 0 --passes finetune 'distill{weight=0.5}'

A net is trained on for --train-first epochs, so that there is something to learn from it (the
three epochs of the other benchmarks leave much to be learned from the labels alone), and kept in
--cache. Then it is pruned to a share of its multiply-adds and fitted, once; each pass trains a copy
of that for each seed, which decides the order of the data. Scores are of 10,000 test images. Needs
`apt-get install dataset-fashion-mnist`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator

import torch
from accuracy import add_cache
from pruning import captured, checkpoints, score_of, shrunk, train, work
from quiet import quiet
from tabulate import tabulate
from tasks import TASKS, Task

from fxopt.ir import Program
from fxopt.registry import default_registry
from fxopt_recover import Finetune

NETS = ("fashion_resnet", "fashion_mobilenet")
PASSES = ("finetune", "distill", "distill{hints=attention}", "distill{hints=features}")


def rows_of(task: Task, options: argparse.Namespace) -> Iterator[list[object]]:
    """One row for each pass."""
    original = well_trained(task, options)
    small = shrunk(task, original, work(original) / options.fewer, options.round_to)
    name = f"{task.name}, {options.fewer:g}x"
    yield [name, "original", "", score_of(task, original)]
    yield [name, "pruned and fitted", "", small.fitted]
    for text in options.passes:
        (item,) = default_registry().parse(text)
        scores = []
        for seed in options.seeds:
            program = small.program.clone()
            folder = checkpoints(options.cache / f"{task.name}_{options.fewer:g}x_{text}_{seed}")
            train(task, program, item, original, options.epochs, seed, folder)
            scores.append(score_of(task, program))
            print(f"  {name}: {text}: seed {seed}: {scores[-1]:.2f}", file=sys.stderr, flush=True)
        yield [name, text, " ".join(f"{score:.2f}" for score in scores), statistics.mean(scores)]


def well_trained(task: Task, options: argparse.Namespace) -> Program:
    """The net after more epochs."""
    program = captured(task, task.model)
    path = options.cache / f"{task.name}_{options.train_first}_more.pt"
    if path.exists():
        program.module.load_state_dict(torch.load(path, weights_only=True))
    else:
        folder = checkpoints(path.with_suffix(".checkpoints"))
        train(task, program, Finetune(), program, options.train_first, folder=folder)
        torch.save(program.module.state_dict(), path)
    return program


def main() -> None:
    quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=NETS)
    parser.add_argument("--passes", nargs="+", default=PASSES)
    parser.add_argument("--train-first", type=int, default=6, metavar="EPOCHS")
    parser.add_argument("--fewer", type=float, default=4.0, help="times fewer multiply-adds")
    parser.add_argument("--round-to", type=int, default=1, help="channels of the pruned net")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add_cache(parser)
    options = parser.parse_args()
    rows = []
    for name in options.models:
        for task in TASKS[name](options.cache):
            rows += rows_of(task, options)
            print(tabulate(rows, headers=("model", "trained by", "%, by seed", "mean %"),
                           floatfmt=".2f", tablefmt="github"), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
