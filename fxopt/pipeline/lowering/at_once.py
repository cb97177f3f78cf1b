"""What builds slowly is built in a worker of its own while the others are built.

Translating and compiling is the work of one thread for the most part, in Python: on two cores, two
programs are built in little more time than one. Calls are timed only when nothing is being built.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from fxopt.cost import Latency, memory_left
from fxopt.pipeline.lowering.attempt import Parcels, announce, attempt
from fxopt.pipeline.lowering.beside import ENOUGH, close_workers, prepare
from fxopt.pipeline.lowering.candidate import Candidate, build
from fxopt.pipeline.lowering.job import PATIENCE_SECONDS, LoweringJob


def choose(
    candidates: Sequence[Candidate], judge: Callable[[Candidate], None], job: LoweringJob
) -> list[Candidate]:
    """What to build at the same time: all that build fast, and the first one of the others.

    What those others are worth is known only afterwards. None is chosen where there is no second
    worker, too little memory for it, or not both kinds.
    """
    if job.beside is None or memory_left() < ENOUGH:
        return []
    fast = [*_staying((c for c in candidates if not c.builds_slowly), judge)]
    slow = next(_staying((c for c in candidates if c.builds_slowly), judge), None)
    return [*fast, slow] if fast and slow is not None else []


def _staying(
    candidates: Iterable[Candidate], judge: Callable[[Candidate], None]
) -> Iterator[Candidate]:
    for candidate in candidates:
        judge(candidate)
        if not candidate.record.reason:
            yield candidate


def build_at_once(candidates: Sequence[Candidate], parcels: Parcels, job: LoweringJob) -> None:
    """Builds candidates as :func:`choose` has chosen them, then times those that are right.

    Those that are lost, since a worker died over another one, are left without a timing.
    """
    *fast, slow = candidates
    packed = [parcels.of(candidate.version) for candidate in candidates]
    with ThreadPoolExecutor(2) as threads:
        try:
            announce(slow, job)
            building = threads.submit(attempt, slow, packed[-1], [], job, timed=False)
            for candidate, parcel in zip(fast, packed, strict=False):
                announce(candidate, job)
                trial = threads.submit(attempt, candidate, parcel, [], job, timed=False)
                if candidate is fast[-1]:
                    _build_early(slow, building, trial, job)
                trial.result()
            if not building.done():
                prepare(slow, job)
            building.result()
        except BaseException:  # such as Ctrl-C: nobody would wait for it
            close_workers(job)
            raise
    for candidate in candidates:
        if candidate.hopeful:
            _time(candidate, job)


def _build_early(
    slow: Candidate, building: Future[None], last: Future[None], job: LoweringJob
) -> None:
    """Builds in this process what the worker has found right while it waits for the last trial.

    That is the case with transformers, whose conversion takes other runtimes longer, and there what
    builds slowly is likely to win.
    """
    wait([building, last], return_when=FIRST_COMPLETED)
    if building.done() and not last.done() and slow.hopeful and memory_left() > ENOUGH:
        build(slow, job)


def _time(candidate: Candidate, job: LoweringJob) -> None:
    """Times a candidate where it is kept."""
    start, holder = time.perf_counter(), job.holder(candidate.key)
    if holder is None:
        return
    result = holder.turn(candidate.key, job.target, timeout=PATIENCE_SECONDS)
    if result.milliseconds:
        candidate.turn = result.milliseconds
        candidate.trial = Latency(result.milliseconds)
        candidate.note(milliseconds=candidate.trial.median)
    elif not result.lost:
        candidate.drop(result.reason)
    candidate.note(seconds=candidate.record.seconds + time.perf_counter() - start)
