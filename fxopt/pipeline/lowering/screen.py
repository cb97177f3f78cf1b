"""The first round: candidates are built in a worker process, and the hopeless ones go no further.

What crashes or hangs there costs only itself. The worker keeps what may win, for a race there, so
that this process builds little more than the winner.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from fxopt.cost import memory_left
from fxopt.pipeline.isolation import ELSEWHERE, Isolation, Parcel, TrialResult
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import PATIENCE_SECONDS, LoweringJob
from fxopt.pipeline.lowering.version import Version

# A single measurement on a machine that may run at half its speed for seconds says no more than
# this; the race between those that are left decides the rest, and soon where they differ so much.
_CLOSE = 4.0

# Weights are packed for each candidate anew. Where so little of the memory is left, more is asked
# of what is kept: a candidate that is lost by mistake costs less than a worker out of memory.
_SHORT = 0.4
_CLOSE_WHERE_SHORT = 1.5

# Building it again here takes the best one so many times as long as its trial at most.
_RESERVE = 1.5


def pack(version: Version, job: LoweringJob) -> Parcel:
    """A version and the examples as files for the worker."""
    assert job.isolation is not None
    return job.isolation.pack(version.program, job.examples, version.reference)


def screen(
    candidates: Sequence[Candidate],
    job: LoweringJob,
    rivals: Sequence[Candidate] = (),
    judge: Callable[[Candidate], None] = lambda candidate: None,
) -> None:
    """Tries candidates in the worker; those that fail, or are clearly beaten, are out.

    Those that cannot be handed over to another process are left as they are.

    Args:
        candidates: What to try.
        job: Has the worker and the examples.
        rivals: What has been timed already and may beat them.
        judge: Is told whose turn it is, and may drop it: it knows what the others took.
    """
    if job.isolation is None:
        return
    with ExitStack() as stack:
        parcels: dict[str, Parcel] = {}
        # What builds fast goes first: when time runs out, there is something to go on with.
        for candidate in sorted(candidates, key=lambda c: c.builds_slowly):
            judge(candidate)
            if candidate.record.reason:
                continue
            version = candidate.version
            if version.name not in parcels:
                parcels[version.name] = stack.enter_context(pack(version, job))
            _try(candidate, parcels[version.name], [*candidates, *rivals], job)
            _part_with_beaten(candidates, rivals, job.isolation)


def _part_with_beaten(
    candidates: Sequence[Candidate], rivals: Sequence[Candidate], isolation: Isolation
) -> None:
    """Finds out who is beaten by now: each that the worker keeps takes memory."""
    close = _CLOSE if memory_left() > _SHORT else min(_CLOSE, _CLOSE_WHERE_SHORT)
    for candidate in candidates:
        limit = close * _best(candidate, [*candidates, *rivals])
        candidate.beaten = limit < _milliseconds(candidate) < math.inf
    isolation.forget([candidate.key for candidate in candidates if not candidate.hopeful])


def screen_again(candidates: Sequence[Candidate], job: LoweringJob) -> None:
    """Tries again what the worker had kept, and lost when it died over another candidate."""
    if job.isolation is None:
        return
    lost = [
        candidate
        for candidate in candidates
        if candidate.hopeful
        and candidate.record.milliseconds is not None
        and not job.isolation.holds(candidate.key)
    ]
    screen(lost, job, rivals=candidates)


def _best(candidate: Candidate, others: Sequence[Candidate]) -> float:
    """Milliseconds of the best one of a candidate's version.

    Which version is worth it is for the race to say.
    """
    right = (c for c in others if c.version is candidate.version and not c.record.reason)
    return min(map(_milliseconds, right), default=math.inf)


def _try(
    candidate: Candidate, parcel: Parcel, others: Sequence[Candidate], job: LoweringJob
) -> None:
    assert job.isolation is not None
    seconds = _seconds_left(others, job)
    if seconds <= 0:
        if not candidate.measured:
            candidate.drop("time limit")
        return
    label, version = candidate.record.backend, candidate.version
    job.progress(f"lowering {job.name} ({version.name}) with {label}")
    start = time.perf_counter()
    result = job.isolation.trial(
        parcel,
        candidate.assignment,
        job.target,
        timeout=seconds,
        tolerance=version.tolerance,
        also=sizes_to_try(candidate, job),
        within=min(map(_milliseconds, (c for c in others if c.hopeful)), default=math.inf),
        keep=candidate.key,
    )
    _settle(candidate, result, job)
    candidate.note(seconds=candidate.record.seconds + time.perf_counter() - start)


def sizes_to_try(candidate: Candidate, job: LoweringJob) -> range:
    """Numbers of the other examples, at whose batch sizes a candidate is compared before use.

    One that builds slowly may compile for each anew, which would take as long as all the rest:
    its code for these is compared on its first use, as that for any further size (``first_use``).
    """
    return range(1, 1 if candidate.builds_slowly else len(job.examples))


def _seconds_left(others: Sequence[Candidate], job: LoweringJob) -> float:
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
