"""The last round: what has won is compared at other batch sizes, and judged by the caller."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.cost import Latency
from fxopt.pipeline.isolation import Isolation
from fxopt.pipeline.lowering.candidate import Candidate, build, describe, output_error
from fxopt.pipeline.lowering.job import PATIENCE_SECONDS, LoweringJob
from fxopt.pipeline.lowering.race import race
from fxopt.pipeline.lowering.screen import pack


def first_right(
    candidates: Sequence[Candidate], plain: Candidate, before: Latency, job: LoweringJob
) -> Candidate:
    """The fastest candidate that is right at every batch size and is accepted.

    What is built here at last, since a faster one was refused, may turn out slower than the worker
    had it: then it is another one's turn.

    Args:
        candidates: Those that may win; some are not built in this process yet.
        plain: The program as it is: what is kept when nothing else will do.
        before: Latency of the original.
        job: Says what is accepted.
    """
    left = list(candidates)
    while left and (candidate := min(left, key=lambda c: c.merit)) is not plain:
        if candidate.module is None:
            before = _build_and_time(candidate, before, job)
            if candidate.module is None:
                left.remove(candidate)
            continue
        left.remove(candidate)
        if candidate.median > before.median:
            continue
        reason = _at_other_sizes(candidate, job)
        if reason is None:
            reason = job.accept(candidate.module)
        if reason is None:
            return candidate
        candidate.note(reason=reason)
    return plain


def _build_and_time(candidate: Candidate, before: Latency, job: LoweringJob) -> Latency:
    """Builds one that was not wanted before; the latency of the original."""
    build(candidate, job)
    return before if candidate.module is None else race([candidate], job)


def _at_other_sizes(candidate: Candidate, job: LoweringJob) -> str | None:
    """Why it cannot be used at the other examples' sizes; None when it can.

    Some backends compile for each size, so this is not done for more candidates than needed.
    """
    others = range(1, len(job.examples))
    if not others:
        return None
    reason = "not isolated"
    if job.isolation is not None and not candidate.assignment.native:
        reason = _elsewhere(candidate, others, job.isolation, job)
    if reason == "not isolated":
        reason = _here(candidate, others, job)
    return f"at another batch size: {reason}" if reason else None


def _elsewhere(
    candidate: Candidate, others: Sequence[int], isolation: Isolation, job: LoweringJob
) -> str:
    """What a trial in the worker finds wrong; empty where it is right."""
    version = candidate.version
    with pack(version, job) as parcel:
        result = isolation.trial(
            parcel,
            candidate.assignment,
            job.target,
            timeout=_patience(candidate, job),
            tolerance=version.tolerance,
            which=others,
            timed=False,
        )
    if result.outcome == "not isolated":
        return result.outcome
    return result.reason or _judge([each.error for each in result.errors], candidate)


def _patience(candidate: Candidate, job: LoweringJob) -> float:
    """Seconds: a time limit leaves at least what building it took so far."""
    return min(PATIENCE_SECONDS, max(job.seconds_left, candidate.record.seconds, 1.0))


def _here(candidate: Candidate, others: Sequence[int], job: LoweringJob) -> str:
    """What a run in this process finds wrong; empty where it is right."""
    try:
        errors = [output_error(candidate, job.examples[index], index) for index in others]
    except Exception as failure:  # noqa: BLE001 - a plugin may raise anything; it is reported
        return describe(failure)
    return _judge(errors, candidate)


def _judge(errors: Sequence[float], candidate: Candidate) -> str:
    limit = candidate.version.tolerance
    wrong = [error for error in errors if not error <= limit]
    return f"output error {wrong[0]:.1e} is over {limit:.1e}" if wrong else ""
