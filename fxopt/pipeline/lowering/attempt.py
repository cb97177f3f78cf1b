"""One trial of one candidate in a worker, and what it says of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack

from fxopt.pipeline.isolation import ELSEWHERE, Isolation, Parcel, TrialResult
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import PATIENCE_SECONDS, LoweringJob
from fxopt.pipeline.lowering.version import Version

# Building it again here takes the best one so many times as long as its trial at most.
_RESERVE = 1.5


def pack(version: Version, job: LoweringJob) -> Parcel:
    """A version and the examples as files for the workers."""
    assert job.isolation is not None
    return job.isolation.pack(version.program, job.examples, version.reference)


class Parcels(ExitStack):
    """Versions as files for the workers, each packed when it is asked for first."""

    def __init__(self, job: LoweringJob) -> None:
        super().__init__()
        self._job = job
        self._packed: dict[str, Parcel] = {}

    def of(self, version: Version) -> Parcel:
        """The files of a version; they go when this is left as a context manager."""
        if version.name not in self._packed:
            self._packed[version.name] = self.enter_context(pack(version, self._job))
        return self._packed[version.name]


def announce(candidate: Candidate, job: LoweringJob) -> None:
    """Shows what begins."""
    backend, version = candidate.record.backend, candidate.version.name
    job.progress(f"lowering {job.name} ({version}) with {backend}")


def attempt(
    candidate: Candidate,
    parcel: Parcel,
    others: Sequence[Candidate],
    job: LoweringJob,
    timed: bool = True,
) -> None:
    """Tries a candidate in its worker, and notes what comes of it.

    Args:
        candidate: One that has time left to be tried.
        parcel: Of its version.
        others: What leads among them is what it has to beat.
        job: Has the workers.
        timed: Whether to measure what is right; else it waits in the worker for that.
    """
    start = time.perf_counter()
    best = min((_milliseconds(c) for c in others if c.hopeful), default=math.inf)
    result = TrialResult("not isolated")
    for isolation in _workers(candidate, job):
        result = isolation.trial(
            parcel,
            candidate.assignment,
            job.target,
            timeout=seconds_left(others, job),
            tolerance=candidate.version.tolerance,
            timed=timed,
            also=sizes_to_try(candidate, job),
            within=best,
            keep=candidate.key,
        )
        if result.outcome != "not isolated":
            break
    _settle(candidate, result, job)
    candidate.note(seconds=candidate.record.seconds + time.perf_counter() - start)


def _workers(candidate: Candidate, job: LoweringJob) -> list[Isolation]:
    """Where it is tried: its own worker, and if that cannot be had, the first one."""
    its_own = [job.beside] if candidate.builds_slowly and job.beside is not None else []
    return its_own + ([job.isolation] if job.isolation is not None else [])


def sizes_to_try(candidate: Candidate, job: LoweringJob) -> range:
    """Numbers of the other examples, at whose batch sizes a candidate is compared before use.

    One that builds slowly may compile for each anew, which would take as long as all the rest:
    its code for these is compared on its first use, as that for any further size (``first_use``).
    """
    return range(1, 1 if candidate.builds_slowly else len(job.examples))


def seconds_left(others: Sequence[Candidate], job: LoweringJob) -> float:
    """Time for the next trial: what is left, less what it takes to go on with the best one."""
    built = [c for c in others if c.record.milliseconds is not None and not c.record.reason]
    best = min(built, key=_milliseconds, default=None)
    reserve = _RESERVE * best.record.seconds if best is not None else 0.0
    return min(PATIENCE_SECONDS, job.seconds_left - reserve)


def _settle(candidate: Candidate, result: TrialResult, job: LoweringJob) -> None:
    """Notes what came of a trial."""
    if result.outcome == "not isolated":
        return
    if result.outcome != "ran":
        cut_short = result.outcome == "died" and job.late
        candidate.drop("time limit" if cut_short else result.reason)
        return
    candidate.trial = result.latency
    candidate.note(
        error=result.errors[0].error,
        precisions=dict(result.precisions),
        fallbacks=result.fallbacks,
        milliseconds=result.latency.median if result.latency is not None else None,
    )
    others = [each.error for each in result.others]
    if reason := candidate.excess(result.errors[0].error):
        candidate.drop(reason)
    elif reason := candidate.excess(*others):
        candidate.drop(f"{ELSEWHERE}: {reason}")
    candidate.right_elsewhere = bool(others) and not reason


def _milliseconds(candidate: Candidate) -> float:
    measured = candidate.record.milliseconds
    return math.inf if measured is None else measured
