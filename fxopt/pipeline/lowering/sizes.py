"""Comparing candidates at the batch sizes of the other examples."""

from __future__ import annotations

from fxopt.pipeline.isolation import ELSEWHERE, Isolation
from fxopt.pipeline.lowering.attempt import pack, sizes_to_try
from fxopt.pipeline.lowering.candidate import Candidate, describe, output_error
from fxopt.pipeline.lowering.job import PATIENCE_SECONDS, LoweringJob

_NOT_ISOLATED = "not isolated"


def wrong_elsewhere(candidate: Candidate, job: LoweringJob) -> str | None:
    """Why a candidate cannot be used at the other examples' sizes; None when it can."""
    if candidate.right_elsewhere or not sizes_to_try(candidate, job):
        return None
    reason = _NOT_ISOLATED
    if job.isolation is not None and not candidate.assignment.native:
        reason = _apart(candidate, job.isolation, job)
    if reason == _NOT_ISOLATED:
        reason = _here(candidate, job)
    return f"{ELSEWHERE}: {reason}" if reason else None


def _apart(candidate: Candidate, isolation: Isolation, job: LoweringJob) -> str:
    """What a trial in the worker finds wrong; empty where it is right."""
    with pack(candidate.version, job) as parcel:
        result = isolation.trial(
            parcel,
            candidate.assignment,
            job.target,
            # a time limit leaves at least what building it took so far
            timeout=min(PATIENCE_SECONDS, max(job.seconds_left, candidate.record.seconds, 1.0)),
            tolerance=candidate.version.tolerance,
            which=sizes_to_try(candidate, job),
            timed=False,
        )
    if result.outcome == _NOT_ISOLATED:
        return result.outcome
    return result.reason or candidate.excess(*(each.error for each in result.errors))


def _here(candidate: Candidate, job: LoweringJob) -> str:
    """What a run in this process finds wrong; empty where it is right."""
    others = list(enumerate(job.examples))[1:]
    try:
        errors = [output_error(candidate, flat, index) for index, flat in others]
    except Exception as failure:  # noqa: BLE001 - a plugin may raise anything; it is reported
        return describe(failure)
    return candidate.excess(*errors)
