"""What the worker does with a request: it builds, runs, compares and measures."""

from __future__ import annotations

import functools
import importlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import getitem
from typing import Any

import torch

from fxopt.backends import LoweredModule
from fxopt.cost import Latency, Target, measure, take_turn, wait_until_idle
from fxopt.errors import FxoptError, SavingError
from fxopt.ir import Program
from fxopt.ir.saving import load_program
from fxopt.pipeline.assignment import Assignment, regions_at_entry
from fxopt.pipeline.compare import Comparison, compare
from fxopt.pipeline.isolation.parcel import load_examples
from fxopt.pipeline.isolation.records import (
    ELSEWHERE,
    TrialResult,
    TurnResult,
    assignment_from_json,
    target_from_json,
)
from fxopt.pipeline.sandbox import copy_inputs
from fxopt.registry import Registry

# Two turns of as many calls as one has time for; of slow ones, two calls or one tell who is far
# behind.
_ROUNDS = 2
_RATHER_SLOW_MS = 250.0
_SLOW_MS = 1000.0
_MOST = 500

# Threads that spin for longer are at it for good.
_REST_SECONDS = 0.25

Stage = Callable[[str], None]
Flat = Sequence[Any]
Kept = dict[str, Callable[[], object]]
"""What trials have built and found right, by the keys that it was kept under."""


def examine(
    request: Mapping[str, Any], registry: Registry, stage: Stage, kept: Kept
) -> TrialResult:
    """Tries backends on a program.

    Args:
        request: As the client writes it.
        registry: Where the backends are.
        stage: Is told what begins.
        kept: Takes what was timed, if the request names a key for it.

    Returns:
        What came of it; whatever a backend raises is a reason.
    """
    stage("loading the program")
    try:
        program = _load(request, registry)
        examples, reference = load_examples(request["examples"])
    except (SavingError, ImportError) as error:
        return TrialResult("not isolated", describe(error))
    try:
        target = target_from_json(request["target"])
        _configure(request, target)
        assignment = assignment_from_json(request["shares"], registry)
        with torch.no_grad():
            trial = _Trial(program, assignment, target, stage, kept)
            return trial.run(examples, reference, request)
    except BaseException as error:  # noqa: BLE001 - not even sys.exit() may end the worker
        return TrialResult("refused", describe(error))


def time_kept(request: Mapping[str, Any], stage: Stage, kept: Kept) -> TurnResult:
    """Times what was kept for a turn, after which nothing is at work that others would feel.

    Args:
        request: As the client writes it.
        stage: Is told what begins.
        kept: What was kept, by a worker that may have died since.

    Returns:
        The timings, or what a call raised.
    """
    if request["turn"] not in kept:
        return TurnResult(reason=f"{request['turn']} is lost", lost=True)
    _configure(request, target_from_json(request["target"]))
    stage(f"measuring {request['turn']}")
    try:
        with torch.no_grad():
            took = take_turn(kept[request["turn"]], request["calls"])
        wait_until_idle(_REST_SECONDS)
    except BaseException as error:  # noqa: BLE001 - as in a trial
        return TurnResult(reason=describe(error))
    return TurnResult(tuple(took))


def describe(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, FxoptError):
        return error.what
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


@dataclass(frozen=True)
class _Trial:
    program: Program
    assignment: Assignment
    target: Target
    stage: Stage
    kept: Kept

    def run(
        self, examples: Sequence[Flat], reference: Sequence[Flat], request: Mapping[str, Any]
    ) -> TrialResult:
        """Compares the examples that are asked for; where they are right, times the first one.

        Args:
            examples: All that there are.
            reference: What the outputs should be.
            request: Says which examples, what error is too large to go on, whether to time, and
                what else is run of what is fast.
        """
        pairs = [(examples[index], reference[index]) for index in request["which"]]
        tolerance = math.inf if request["tolerance"] is None else request["tolerance"]
        self.stage("compiling")
        for share in self.assignment.shares:
            reason = share.unsupported(self.program, self.target)
            if reason is not None:
                return TrialResult("refused", reason)
        start = time.perf_counter()
        lowered = self.assignment.applied(self.program, self.target)
        _compile(lowered, pairs[0][0])
        seconds = time.perf_counter() - start
        self.stage("running")
        errors, took = zip(*(_compared(lowered, *pair) for pair in pairs), strict=True)
        result = _result(lowered, errors, seconds)
        if not all(each.error <= tolerance for each in errors):
            return result
        flat = pairs[0][0]
        if request["timed"]:
            self.stage("measuring")
            result = replace(result, latency=_latency(lowered, flat, took[0]))
        also = [(examples[index], reference[index]) for index in request["also"]]
        is_fast = result.latency is None or result.latency.median <= request["within"]
        if also and is_fast:
            result = replace(result, others=tuple(self._elsewhere(lowered, also)))
        if request["keep"]:
            self.kept[request["keep"]] = _racer(lowered, flat)
        return replace(result, kept=bool(request["keep"]))

    def _elsewhere(self, lowered: Program, pairs: Sequence[tuple[Flat, Flat]]) -> list[Comparison]:
        self.stage(f"running {ELSEWHERE}")
        try:
            return [_compared(lowered, *pair)[0] for pair in pairs]
        except Exception as error:
            raise FxoptError(f"{ELSEWHERE}: {describe(error)}") from error


def _compile(program: Program, flat: Flat) -> None:
    """Compiles what takes inputs of the program alone; the rest is compiled when it is called."""
    for leaf, inputs in regions_at_entry(program, flat):
        leaf.executable(*inputs)


def _racer(program: Program, flat: Flat) -> Callable[[], object]:
    """What races: the code alone where that is all, so that the weights it was made from can go."""
    given = dict(zip(program.inputs, flat, strict=True))
    others = [n for n in program.nodes if n.op.startswith("call_") and n.target is not getitem]
    leaf = program.leaf(others[0]) if others and others[0].op == "call_module" else None
    if len(others) == 1 and isinstance(leaf, LoweredModule):
        inputs = [given[node] for node in others[0].all_input_nodes if node in given]
        if len(inputs) == len(others[0].args):
            return functools.partial(leaf.executable(*inputs), *inputs)
    return functools.partial(program, *flat)


def _compared(program: Program, flat: Flat, reference: Flat) -> tuple[Comparison, float]:
    """How far it is from what it should be, and the milliseconds that its call took."""
    own = copy_inputs(flat)
    start = time.perf_counter()
    outputs = program(*own)
    took = _ms_since(start)
    written = compare(own, flat)
    if written.error > 0:
        return Comparison(float("inf"), "it writes to its inputs"), took
    return compare(outputs, reference), took


def _latency(program: Program, flat: Flat, took: float) -> Latency:
    """Of what took so many milliseconds when it was called first, which is enough where slow."""
    milliseconds = took if took > _SLOW_MS else _call_ms(program, flat)
    if milliseconds > _SLOW_MS:
        return Latency((milliseconds,))
    if milliseconds > _RATHER_SLOW_MS:
        return Latency((milliseconds, _call_ms(program, flat)))
    return measure({"": lambda: program(*flat)}, rounds=_ROUNDS, burst=_MOST)[""]


def _call_ms(program: Program, flat: Flat) -> float:
    start = time.perf_counter()
    program(*flat)
    return _ms_since(start)


def _ms_since(start: float) -> float:
    return max((time.perf_counter() - start) * 1e3, 1e-3)


def _result(program: Program, errors: Sequence[Comparison], seconds: float) -> TrialResult:
    lowered = [m for m in program.module.modules() if isinstance(m, LoweredModule)]
    return TrialResult(
        "ran",
        errors=tuple(errors),
        precisions=dict(sum((module.precisions() for module in lowered), Counter[str]())),
        kernels=tuple(kernel for module in lowered for kernel in module.kernels()),
        fallbacks=tuple(line for module in lowered for line in module.fallbacks()),
        build_seconds=seconds,
    )


def _load(request: Mapping[str, Any], registry: Registry) -> Program:
    for name in request["imports"]:
        importlib.import_module(name)
    packages = {plugin.origin.module.partition(".")[0] for plugin in registry.plugins}
    return _loaded(request["program"], frozenset(packages))


@functools.lru_cache(maxsize=1)
def _loaded(path: str, packages: frozenset[str]) -> Program:
    """A program, once for the trials that follow each other: as in the caller, they share it."""
    return load_program(path, packages=packages)


def forget_program() -> None:
    """Lets go of the program of the last trial."""
    _loaded.cache_clear()


def _configure(request: Mapping[str, Any], target: Target) -> None:
    """Sets what the caller has set: it looks for compiled code where this process has left it."""
    given = request["variables"]
    os.environ.update(given)
    for name in set(os.environ) - set(given):
        del os.environ[name]
    torch.set_num_threads(target.threads)
    torch.set_float32_matmul_precision(request["matmul_precision"])
