"""Lowering: every way to run a program that is on offer is tried, and the fastest one kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from fxopt.cost import Latency
from fxopt.emit import OptimizedModule, emit
from fxopt.pipeline.assignment import Assignment
from fxopt.pipeline.lowering.candidate import Candidate, build
from fxopt.pipeline.lowering.job import LoweringJob
from fxopt.pipeline.lowering.mixing import mixtures
from fxopt.pipeline.lowering.offers import offers
from fxopt.pipeline.lowering.race import race
from fxopt.pipeline.lowering.rounds import screen_in_rounds
from fxopt.pipeline.lowering.screen import screen
from fxopt.pipeline.lowering.tune import leaders, tunings
from fxopt.pipeline.lowering.tuning import drop_slow, timings, tuning_file
from fxopt.pipeline.lowering.verify import first_right
from fxopt.pipeline.lowering.version import REDUCED, Version
from fxopt.report import RegionRecord

# The caller asked for certain passes: running without them in a lower precision has to be worth it.
_REDUCED_HANDICAP = 1.03


@dataclass(frozen=True)
class Lowered:
    """The outcome.

    Attributes:
        module: The emitted module.
        version: Name of the version that it runs.
        record: For the report.
        before: Latency of the original.
        after: Latency of ``module``.
    """

    module: OptimizedModule
    version: str
    record: RegionRecord
    before: Latency
    after: Latency


def lower(versions: Sequence[Version], job: LoweringJob) -> Lowered:
    """Tries each version on each backend and keeps the fastest one that is right.

    The last of ``versions`` is what the passes made; the ones before it are what it can be
    reverted to. The original model runs in the same race, so the result is never slower than
    that: when nothing beats it, the program is emitted as it is.
    """
    shared = job.isolation.shared_files() if job.isolation is not None else nullcontext()
    with shared:
        return _lower(versions, job)


def _lower(versions: Sequence[Version], job: LoweringJob) -> Lowered:
    candidates = offers(versions, job)
    tuning = tuning_file(candidates, job)
    known = tuning.read()
    drop_slow(candidates, known)
    screen_in_rounds(candidates, job)
    for candidate in sorted(candidates, key=lambda c: c.record.milliseconds or 0.0):
        _try(candidate, job)
    plain = _plain(versions[0], candidates, job)
    if plain not in candidates:
        candidates.append(plain)
    timed = [candidate for candidate in candidates if candidate.module is not None]
    before = race(timed, job)
    for challengers in (tunings, mixtures):
        late = challengers(timed, job)
        candidates += late
        before = _challenge(late, timed, before, job)
    tuning.write(known | timings(candidates))
    for candidate in candidates:
        if candidate.beaten:
            took = f"{candidate.record.milliseconds:.3g} ms"
            candidate.drop(f"clearly slower in its trial: {took}", slower=True)
    timed.sort(key=_merit)
    winner = first_right(timed, plain, before, job)
    return _outcome(winner, candidates, before, job)


def _challenge(
    late: Sequence[Candidate], timed: list[Candidate], before: Latency, job: LoweringJob
) -> Latency:
    """Races candidates that came late against the best so far and the original."""
    screen(late, job, rivals=timed)
    for candidate in late:
        _try(candidate, job)
    right = [candidate for candidate in late if candidate.module is not None]
    if not right:
        return before
    close = [c for c in leaders(timed) if not c.assignment.native]
    timed += right
    return race([*close, *right], job)


def _merit(candidate: Candidate) -> float:
    """Milliseconds, for ranking; what the passes made is preferred to what merely comes near."""
    handicap = _REDUCED_HANDICAP if candidate.version.name == REDUCED else 1.0
    return candidate.median * handicap


def _try(candidate: Candidate, job: LoweringJob) -> None:
    if candidate.record.reason or candidate.beaten:
        return
    if job.late:
        candidate.drop("time limit")
        return
    label, version = candidate.record.backend, candidate.version.name
    job.progress(f"lowering {job.name} ({version}) with {label}")
    build(candidate, job)


def _plain(version: Version, candidates: Sequence[Candidate], job: LoweringJob) -> Candidate:
    """The program as it is: what is kept when nothing on offer beats the original."""
    for candidate in candidates:
        is_native = candidate.assignment.native and candidate.module is not None
        if candidate.version is version and is_native:
            return candidate
    plain = Candidate(version, Assignment(()))
    plain.module = emit(version.program, job.argument_names)
    return plain


def _outcome(
    winner: Candidate, candidates: Sequence[Candidate], before: Latency, job: LoweringJob
) -> Lowered:
    assert winner.module is not None
    assert winner.latency is not None
    operations = sum(n.op.startswith("call_") for n in winner.version.program.nodes)
    ranked = sorted(candidates, key=lambda candidate: candidate.record.milliseconds or math.inf)
    record = RegionRecord(
        job.name, operations, winner.record, tuple(candidate.record for candidate in ranked)
    )
    return Lowered(winner.module, winner.version.name, record, before, winner.latency)
