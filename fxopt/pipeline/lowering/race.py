"""The races: candidates timed in turns, in the worker, and in this process with the original."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from fxopt.cost import Latency, measure, race_in_turns
from fxopt.pipeline.lowering.candidate import Candidate, describe
from fxopt.pipeline.lowering.job import PATIENCE_SECONDS, SLOW_MS, LoweringJob
from fxopt.pipeline.lowering.screen import screen_again

_ORIGINAL = "original"

# Candidates that come close to each other get more turns than those that are clearly behind. On a
# virtual machine a turn is off by 12 %, however long it is: only more of them tell who is faster,
# and twice as many tell little more: which of two that are 3 % apart is the faster one comes out
# right 66 times of 100 in six turns, and 69 times in twelve (simulated).
_ROUNDS = 16
_SECONDS = 6.0  # in the worker, where candidates are that may be close
_SECONDS_HERE = 5.0  # where the best of them races with the original
_SECONDS_AGAIN = 3.0  # where the leader has raced already and others differ by a setting of it
_FEWEST = 4  # however long it takes, unless there is a time limit
_FEWEST_SLOW = 3  # of slow calls

# Where there is nothing to choose, timings are for the report alone.
_SECONDS_TO_TELL = 2.0


def race(candidates: Sequence[Candidate], job: LoweringJob) -> Latency:
    """Times candidates that are built in this process, and notes their latencies.

    One that fails is out, and the others race again.

    Returns:
        The latency of the original.
    """
    racing = {c.name: c for c in candidates if c.module is not None}
    calls = {name: c.call(job.examples[0]) for name, c in racing.items()}
    job.progress(f"measuring {len(calls) + 1} candidates for {job.name}")
    left = max(_SECONDS_TO_TELL, job.seconds_left)
    given = left if _is_choice([*racing.values()]) else _SECONDS_TO_TELL
    limits = _limits(_SECONDS_HERE, given, [*racing.values()])
    turns: list[str] = []
    try:
        latencies = _measured({_ORIGINAL: job.original, **calls}, limits, turns.append)
    except Exception as failure:
        culprit = racing.get(turns[-1])
        if culprit is None or culprit.assignment.native:
            raise
        culprit.drop(describe(failure))
        return race(candidates, job)
    for name, candidate in racing.items():
        candidate.timed(latencies[name])
    return latencies[_ORIGINAL]


def _measured(
    calls: Mapping[str, Callable[[], object]],
    limits: Mapping[str, Any],
    watch: Callable[[str], None],
) -> dict[str, Latency]:
    with torch.no_grad():
        return measure(calls, watch=watch, **limits)


def _limits(most: float, left: float, racing: Sequence[Candidate]) -> dict[str, Any]:
    """How long a race may take, where so many seconds are left; as arguments of ``measure``."""
    limits = {"rounds": _ROUNDS, "narrowing": True, "seconds": min(most, left)}
    if left < most:
        return limits
    took = [candidate.record.milliseconds or 0.0 for candidate in racing]
    return limits | {"fewest": _FEWEST_SLOW if min(took, default=0.0) > SLOW_MS else _FEWEST}


def race_late(
    late: Sequence[Candidate],
    leading: Sequence[Candidate],
    others: Sequence[Candidate],
    before: Latency,
    job: LoweringJob,
) -> Latency:
    """Races what was built late with the leaders; the others are as far behind as they were.

    Args:
        late: They have not raced here before.
        leading: They have.
        others: What else there is; those of the above among them are left alone.
        before: Latency of the original when the leaders raced.
        job: Has the original.

    Returns:
        The latency of the original now.
    """
    took = held(leading)
    now = race([*leading, *late], job)
    factor = join(took, [c for c in others if c not in late], now.median / before.median)
    return now.joined(before.scaled(factor))


def _is_choice(candidates: Sequence[Candidate]) -> bool:
    """A program that nothing has lowered is kept, whether it or the original is faster."""
    return len(candidates) > 1 or not all(c.assignment.native for c in candidates)


def race_apart(
    candidates: Sequence[Candidate], job: LoweringJob, seconds: float = _SECONDS
) -> None:
    """Times candidates in the worker, as far as it has kept them, and notes their latencies.

    One that fails there is out, and the others race again. What the worker has lost, since it died
    over another candidate, is tried again before.
    """
    screen_again(candidates, job)
    left = job.seconds_left / 4
    kept = [c for c in candidates if c.hopeful and job.holder(c.key) is not None]
    if not kept or left <= 0:
        return
    if len(kept) == 1 and kept[0].trial is not None:  # there is nobody to race with
        kept[0].timed(kept[0].trial)
        return
    job.progress(f"measuring {len(kept)} candidates for {job.name}")
    turns = {candidate.key: partial(_turn, candidate, job) for candidate in kept}
    first = {candidate.key: candidate.turn for candidate in kept}
    limits = _limits(seconds, left, kept)
    for candidate in kept:
        candidate.turn = ()
    try:
        latencies = race_in_turns(turns, first=first if all(first.values()) else None, **limits)
    except _NoTurnError as failure:
        if not failure.lost:
            failure.candidate.drop(failure.reason)
            race_apart(candidates, job, seconds)
        return
    for candidate in kept:
        candidate.timed(latencies[candidate.key])


class _NoTurnError(Exception):
    """A candidate could not take its turn."""

    def __init__(self, candidate: Candidate, reason: str, lost: bool) -> None:
        super().__init__(reason)
        self.candidate = candidate
        self.reason = reason
        self.lost = lost


def _turn(candidate: Candidate, job: LoweringJob) -> Sequence[float]:
    """A turn where the candidate is kept."""
    holder = job.holder(candidate.key)
    if holder is None:
        raise _NoTurnError(candidate, f"{candidate.name} is lost", lost=True)
    result = holder.turn(candidate.key, job.target, timeout=PATIENCE_SECONDS)
    if result.reason:
        raise _NoTurnError(candidate, result.reason, result.lost)
    return result.milliseconds


def race_again(
    leading: Sequence[Candidate],
    late: Sequence[Candidate],
    raced: Sequence[Candidate],
    job: LoweringJob,
) -> None:
    """Races those that came late with the leaders; the others are as far behind as they were."""
    took = held(leading)
    race_apart([*leading, *late], job, _SECONDS_AGAIN)
    join(took, raced)


def held(candidates: Sequence[Candidate]) -> dict[Candidate, Latency]:
    """Latencies by candidate, of those that have raced."""
    return {c: c.latency for c in candidates if c.latency is not None}


def join(before: Mapping[Candidate, Latency], others: Sequence[Candidate], *ratios: float) -> float:
    """Joins what an earlier race measured to what the last one did, at the machine's speed now.

    Args:
        before: Latencies of then, by candidate; those that are out by now do not count.
        others: What else was timed then is taken to be as far behind now; those in ``before`` are
            left alone.
        ratios: Latency now over that of then, for anything else that was in both races.

    Returns:
        How many times as long all take now.
    """
    now = {c: took for c, took in held([*before]).items() if c.hopeful and took is not before[c]}
    ratios = (*ratios, *(took.median / before[c].median for c, took in now.items()))
    factor = statistics.geometric_mean(ratios) if ratios else 1.0
    rescale([candidate for candidate in others if candidate not in before], factor)
    for candidate, took in now.items():
        candidate.timed(took.joined(before[candidate].scaled(factor)))
    return factor


def rescale(candidates: Sequence[Candidate], factor: float) -> None:
    """Converts what was measured earlier, when the machine was faster or slower by ``factor``."""
    for candidate in candidates:
        if candidate.latency is not None:
            candidate.timed(candidate.latency.scaled(factor))
        elif candidate.record.milliseconds is not None:
            candidate.note(milliseconds=candidate.record.milliseconds * factor)
