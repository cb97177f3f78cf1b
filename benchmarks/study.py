"""Builds, checks and times all candidates of one model."""

from __future__ import annotations

import fnmatch
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from cold import empty_caches
from duel import duel
from own import Own, own_name
from rivals import RIVALS, Builder, Call, Rival, timed
from rivals.inductor import Compiled
from rows import OWN, RIVAL, TORCH_ONLY, Row
from torch import nn
from verdicts import verdict
from zoo import build

from fxopt.cost import measure

REFERENCE = "eager"
"""Output errors refer to it, so it is built always, and first."""

_CONTENDS = 1.3  # so many times the latency of the fastest rival, in a short measurement
_WORTH_BUILDING = 2.0  # the same, in a later run
_BURST = 9  # calls a turn, of those who contend

BUILDING = "building"
"""The file that names what is being built."""


@dataclass(frozen=True)
class Options:
    """What to run.

    Attributes:
        precisions: Of ``fp32``, ``bf16``, ``int8``.
        rivals: Glob patterns of the rivals' names.
        torch_only: Whether to add fxopt without optional runtimes.
        max_autotune: Whether to add the rivals that tune for minutes.
        rounds: Turns of each candidate.
        limit: Seconds that a rival may take to build; 0 is no limit.
        time_limit: Seconds given to :func:`fxopt.optimize`.
        left_out: Candidates that are not built, and why not.
    """

    precisions: tuple[str, ...]
    rivals: tuple[str, ...] = ("*",)
    torch_only: bool = False
    max_autotune: bool = False
    rounds: int = 8
    limit: float = 600.0
    time_limit: float | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A builder, and what its row says of it."""

    name: str
    precision: str
    build: Builder
    kind: str = RIVAL
    torch: bool = True
    suits: Callable[[nn.Module], bool] = lambda model: True


def candidates(options: Options) -> list[Candidate]:
    """All that is asked for, the reference first."""
    rivals = [rival for rival in RIVALS if rival.name == REFERENCE or _asked(rival, options)]
    chosen = [Candidate(r.name, r.precision, r.build, RIVAL, r.torch, r.suits) for r in rivals]
    for kind in (OWN, TORCH_ONLY) if options.torch_only else (OWN,):
        for precision in options.precisions:
            own = partial(Own, kind=kind, precision=precision, time_limit=options.time_limit)
            name = own_name(kind, precision)
            chosen.append(Candidate(name, precision, own, kind, kind == TORCH_ONLY))
    return chosen


def _asked(rival: Rival, options: Options) -> bool:
    if rival.precision not in options.precisions or rival.autotunes > options.max_autotune:
        return False
    return any(fnmatch.fnmatch(rival.name, pattern) for pattern in options.rivals)


def suited(name: str, options: Options) -> list[str]:
    """Names of the candidates that make sense for a model."""
    model, _ = build(name, 1)
    return [candidate.name for candidate in candidates(options) if candidate.suits(model)]


def run(name: str, batch: int, options: Options, folder: Path) -> list[Row]:
    """Builds all candidates of a model, then times them in turns.

    In ``folder`` go the caches, and the name of what is being built, should it crash the process.
    """
    model, inputs = build(name, batch)
    building = folder / BUILDING
    rows: dict[str, Row] = {}
    calls: dict[str, Call] = {}
    outputs: dict[str, torch.Tensor] = {}
    for chosen in (c for c in candidates(options) if c.suits(model)):
        row = Row(name, batch, chosen.precision, chosen.name, chosen.kind, chosen.torch)
        rows[chosen.name] = row
        if chosen.name in options.left_out:
            row.remark = options.left_out[chosen.name]
            continue
        building.write_text(chosen.name)
        empty_caches(folder / f"cache{len(rows)}")
        builder = partial(chosen.build, model, inputs)
        limit = options.limit if chosen.kind == RIVAL else 0.0
        with _built(row, limit):
            calls[chosen.name] = call = builder()
            outputs[chosen.name] = call().clone()  # a runtime may reuse its output's memory
    building.write_text("")
    for candidate, output in outputs.items():
        rows[candidate].error = _error(output, outputs[REFERENCE])
    ready = {candidate: calls[candidate] for candidate in outputs}
    _check_compiled(rows, ready)
    _time(rows, ready, options.rounds)
    duel(list(rows.values()), ready)
    for candidate, call in ready.items():
        if isinstance(call, Own):
            rows[candidate].report = call.report()
    return list(rows.values())


@contextmanager
def _built(row: Row, limit: float) -> Iterator[None]:
    """Notes how long building took, or why it failed: that is a result, not a failure."""
    start = time.perf_counter()
    try:
        with timed(limit):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # TimeLimit, and whatever a rival raises
        first = (str(error).strip().splitlines() or [""])[0]
        row.remark = f"{type(error).__name__}: {first[:100]}"
    row.build_seconds = time.perf_counter() - start
    what = row.remark or f"built in {row.build_seconds:.0f} s"
    print(f"  {row.model}, batch {row.batch}: {row.candidate}: {what}", file=sys.stderr, flush=True)


def _error(output: torch.Tensor, reference: torch.Tensor) -> float:
    return float((output.float() - reference).norm() / reference.norm())


def _check_compiled(rows: dict[str, Row], calls: dict[str, Call]) -> None:
    """Takes candidates out that would be compiled again while they are timed.

    What was built later may have made Dynamo forget them: they get the chance to come back.
    """
    for candidate in list(calls):
        rows[candidate].remark = _second_call(calls[candidate])
        if rows[candidate].remark:
            del calls[candidate]


def _second_call(call: Call) -> str:
    """What keeps it from running as it was built; empty where nothing does."""
    try:
        if isinstance(call, Compiled):
            call.warm()
        with torch.compiler.set_stance("fail_on_recompile"):
            call()
    except Exception as error:
        return f"cannot be called again: {type(error).__name__}"
    return ""


def _time(rows: dict[str, Row], calls: dict[str, Call], rounds: int) -> None:
    """Times all, then those on whom a verdict may depend, for longer: what counts is a few %."""
    _measure(rows, calls, rounds=rounds // 2, burst=7)
    close = {name: calls[name] for name in contenders(list(rows.values())) if name in calls}
    _measure(rows, close, rounds=2 * rounds, burst=_BURST)  # and duels follow where it is close


def _measure(rows: dict[str, Row], calls: dict[str, Call], rounds: int, burst: int) -> None:
    print(f"  measuring {len(calls)} candidates", file=sys.stderr, flush=True)
    for candidate, latency in measure(calls, rounds=rounds, burst=burst).items():
        rows[candidate].milliseconds = latency.median
        rows[candidate].spread = latency.spread


def far_behind(rows: Sequence[Row]) -> dict[str, str]:
    """The rivals that need not be built in a later run, with reasons.

    Those that failed in this one, and those that took more than twice as long as the fastest of
    their precision, but for what fxopt was compared with.
    """
    near = set(contenders(rows, _WORTH_BUILDING))
    judged = [verdict(row, rows).best for row in rows if row.kind != RIVAL and row.measured]
    near |= {best.candidate for best in judged if best is not None}
    batch = rows[0].batch
    return {
        row.candidate: row.remark or f"not built: far behind in an earlier run at batch {batch}"
        for row in rows
        if row.candidate not in near | {REFERENCE}
    }


def contenders(rows: Sequence[Row], times: float = _CONTENDS) -> list[str]:
    """fxopt's own rows and, of each precision, the rivals that may be the fastest one.

    Args:
        rows: Of one case.
        times: By how much those may be slower than the fastest that was measured.
    """
    names = [row.candidate for row in rows if row.kind != RIVAL]
    for precision in {row.precision for row in rows}:
        rivals = [r for r in rows if r.kind == RIVAL and r.precision == precision and r.measured]
        for group in (rivals, [row for row in rivals if row.torch]):
            limit = times * min((row.milliseconds for row in group), default=0.0)
            names += [row.candidate for row in group if row.milliseconds <= limit]
    return list(dict.fromkeys(names))
