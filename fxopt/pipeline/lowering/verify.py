"""The last round: what has won is compared at other batch sizes, and judged by the caller."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fxopt.cost import Latency
from fxopt.pipeline.isolation import Isolation
from fxopt.pipeline.lowering.candidate import Candidate, describe, output_error
from fxopt.pipeline.lowering.job import PATIENCE_SECONDS, LoweringJob
from fxopt.pipeline.lowering.screen import pack


def first_right(
    candidates: Sequence[Candidate], plain: Candidate, before: Latency, job: LoweringJob
) -> Candidate:
    """The fastest candidate that is right at every batch size and is accepted.

    Args:
        candidates: Fastest first.
        plain: The program as it is: what is kept when nothing else will do.
        before: Latency of the original.
        job: Says what is accepted.
    """
    for candidate in candidates:
        if candidate is plain:
            break
        if candidate.median > before.median:
            continue
        reason = _at_other_sizes(candidate, job)
        if reason is None and candidate.module is not None:
            reason = job.accept(candidate.module)
        if reason is None:
            return candidate
        candidate.note(reason=reason)
    return plain


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
    if job.deadline is None:
        return PATIENCE_SECONDS
    return max(job.deadline - time.monotonic(), candidate.record.seconds, 1.0)


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
