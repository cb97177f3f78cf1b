"""The first round: candidates are built in a worker process, and the hopeless ones go no further.

What crashes or hangs there costs only itself. The worker keeps what may win, for a race there, so
that this process builds little more than the winner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fxopt.cost import memory_left
from fxopt.pipeline.lowering.at_once import build_at_once, choose
from fxopt.pipeline.lowering.attempt import Parcels, announce, attempt, seconds_left
from fxopt.pipeline.lowering.beside import attempt_and_prepare
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import LoweringJob

# A single measurement on a machine that may run at half its speed for seconds says no more than
# this; the race between those that are left decides the rest, and soon where they differ so much.
_CLOSE = 4.0

# Weights are packed for each candidate anew. Where so little of the memory is left, more is asked
# of what is kept: a candidate that is lost by mistake costs less than a worker out of memory.
_SHORT = 0.4
_CLOSE_WHERE_SHORT = 1.5


def screen(
    candidates: Sequence[Candidate],
    job: LoweringJob,
    rivals: Sequence[Candidate] = (),
    judge: Callable[[Candidate], None] = lambda candidate: None,
    at_once: bool = False,
) -> None:
    """Tries candidates in the worker; those that fail, or are clearly beaten, are out.

    Those that cannot be handed over to another process are left as they are.

    Args:
        candidates: What to try.
        job: Has the workers and the examples.
        rivals: What has been timed already and may beat them.
        judge: Is told whose turn it is, and may drop it: it knows what the others took.
        at_once: Whether to build the first one of those that build slowly beside the others, that
            is, before it is known what those take.
    """
    if job.isolation is None:
        return
    with Parcels(job) as parcels:
        together = choose(candidates, judge, job) if at_once else []
        if together:
            build_at_once(together, parcels, job)
            _part_with_beaten(candidates, rivals, job)
        done = [candidate for candidate in together if candidate.measured]
        # What builds fast goes first: when time runs out, there is something to go on with.
        for candidate in sorted(candidates, key=lambda c: c.builds_slowly):
            if candidate in done:
                continue
            judge(candidate)
            if candidate.record.reason:
                continue
            _try(candidate, parcels, [*candidates, *rivals], job)
            _part_with_beaten(candidates, rivals, job)


def _part_with_beaten(
    candidates: Sequence[Candidate], rivals: Sequence[Candidate], job: LoweringJob
) -> None:
    """Finds out who is beaten by now: each that the worker keeps takes memory."""
    close = _CLOSE if memory_left() > _SHORT else min(_CLOSE, _CLOSE_WHERE_SHORT)
    for candidate in candidates:
        limit = close * _best(candidate, [*candidates, *rivals])
        candidate.beaten = limit < _milliseconds(candidate) < math.inf
    lost = [candidate for candidate in candidates if not candidate.hopeful]
    job.forget([candidate.key for candidate in lost])
    for candidate in lost:
        candidate.prepared = None


def screen_again(candidates: Sequence[Candidate], job: LoweringJob) -> None:
    """Tries again what the worker had kept, and lost when it died over another candidate."""
    if job.isolation is None:
        return
    lost = [
        candidate
        for candidate in candidates
        if candidate.hopeful
        and candidate.record.milliseconds is not None
        and job.holder(candidate.key) is None
    ]
    screen(lost, job, rivals=candidates)


def _best(candidate: Candidate, others: Sequence[Candidate]) -> float:
    """Milliseconds of the best one of a candidate's version.

    Which version is worth it is for the race to say.
    """
    right = (c for c in others if c.version is candidate.version and not c.record.reason)
    return min(map(_milliseconds, right), default=math.inf)


def _try(
    candidate: Candidate, parcels: Parcels, others: Sequence[Candidate], job: LoweringJob
) -> None:
    if seconds_left(others, job) > 0:
        announce(candidate, job)
        if candidate.builds_slowly:
            attempt_and_prepare(candidate, parcels, others, job)
        else:
            attempt(candidate, parcels.of(candidate.version), others, job)
    elif not candidate.measured:
        candidate.drop("time limit")


def _milliseconds(candidate: Candidate) -> float:
    measured = candidate.record.milliseconds
    return math.inf if measured is None else measured
