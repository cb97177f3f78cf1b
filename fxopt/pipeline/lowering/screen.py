"""The first round: candidates are built in a worker process, and the hopeless ones go no further.

What crashes or hangs there costs only itself. And this process, where everything that is built
stays in memory, builds those alone that may win.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack

from fxopt.pipeline.isolation import Isolation, Parcel, TrialResult
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import LoweringJob
from fxopt.pipeline.lowering.version import Version

# A single measurement on a noisy machine says no more than this; the race decides the rest.
_CLOSE = 1.25

_PATIENCE_SECONDS = 600.0  # no answer for so long is a hang


def screen(candidates: Sequence[Candidate], job: LoweringJob) -> None:
    """Tries candidates in the worker; those that fail, or are clearly beaten, are out.

    Those that cannot be handed over to another process are left as they are.
    """
    isolation = job.isolation
    if isolation is None:
        return
    with ExitStack() as stack:
        parcels: dict[str, Parcel] = {}
        for candidate in candidates:
            version = candidate.version
            if version.name not in parcels:
                parcels[version.name] = stack.enter_context(_pack(isolation, version, job))
            _try(candidate, parcels[version.name], candidates, job)
    for name in parcels:
        _mark_beaten([candidate for candidate in candidates if candidate.version.name == name])


def _mark_beaten(candidates: Sequence[Candidate]) -> None:
    """Compares the candidates of one version: which version is worth it is for the race to say."""
    best = min((_milliseconds(c) for c in candidates if not c.record.reason), default=math.inf)
    for candidate in candidates:
        candidate.beaten = _CLOSE * best < _milliseconds(candidate) < math.inf


def _pack(isolation: Isolation, version: Version, job: LoweringJob) -> Parcel:
    return isolation.pack(version.program, job.examples, version.reference)


def _try(
    candidate: Candidate, parcel: Parcel, others: Sequence[Candidate], job: LoweringJob
) -> None:
    assert job.isolation is not None
    seconds = _seconds_left(others, job)
    if seconds <= 0:
        candidate.drop("time limit")
        return
    label, version = candidate.record.backend, candidate.version
    job.progress(f"lowering {job.name} ({version.name}) with {label}")
    start = time.perf_counter()
    result = job.isolation.trial(
        parcel, candidate.assignment, job.target, timeout=seconds, tolerance=version.tolerance
    )
    _settle(candidate, result, job)
    candidate.note(seconds=time.perf_counter() - start)


def _seconds_left(others: Sequence[Candidate], job: LoweringJob) -> float:
    """Time for the next trial: what is left, less what building the best one here will take."""
    if job.deadline is None:
        return _PATIENCE_SECONDS
    built = [c for c in others if c.record.milliseconds is not None and not c.record.reason]
    best = min(built, key=_milliseconds, default=None)
    reserve = best.record.seconds if best is not None else 0.0
    return min(_PATIENCE_SECONDS, job.deadline - time.monotonic() - reserve)


def _settle(candidate: Candidate, result: TrialResult, job: LoweringJob) -> None:
    """Notes what came of a trial."""
    if result.outcome == "not isolated":
        return
    if result.outcome != "ran":
        cut_short = result.outcome == "died" and job.late
        candidate.drop("time limit" if cut_short else result.reason)
        return
    candidate.note(
        error=result.errors[0].error,
        precisions=dict(result.precisions),
        fallbacks=result.fallbacks,
        milliseconds=result.latency.median if result.latency is not None else None,
    )
    for index, each in enumerate(result.errors):
        if not each.error <= candidate.version.tolerance:
            where = " at another batch size" if index else ""
            limit = candidate.version.tolerance
            candidate.drop(f"output error {each.error:.1e}{where} is over {limit:.1e}")
            return


def _milliseconds(candidate: Candidate) -> float:
    measured = candidate.record.milliseconds
    return math.inf if measured is None else measured
