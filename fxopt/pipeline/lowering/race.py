"""The race: candidates and the original, timed in turns, and the fastest one that is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fxopt.cost import Latency, measure
from fxopt.pipeline.lowering.candidate import Candidate, describe, output_error
from fxopt.pipeline.lowering.job import LoweringJob

_ORIGINAL = "original"

# A candidate that takes so many times as long as the best one gets no further turns in the race.
_HOPELESS = 1.5


def race(candidates: Sequence[Candidate], job: LoweringJob) -> Latency:
    """Times candidates that are built, and notes their latencies.

    Returns:
        The latency of the original.
    """
    calls: dict[str, Callable[[], object]] = {_ORIGINAL: job.original}
    for candidate in candidates:
        calls[candidate.name] = candidate.call(job.examples[0])
    job.progress(f"measuring {len(calls)} candidates for {job.name}")
    with torch.no_grad():
        # with one candidate there is nothing to decide: two rounds are enough to report
        rounds = 5 if len(candidates) > 1 else 2
        latencies = measure(calls, rounds=rounds, drop_above=_HOPELESS)
    for candidate in candidates:
        latency = latencies[candidate.name]
        candidate.latency = latency
        candidate.note(milliseconds=latency.median, spread=latency.spread)
    return latencies[_ORIGINAL]


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
    for index, flat in list(enumerate(job.examples))[1:]:
        try:
            error = output_error(candidate, flat, index)
        except Exception as failure:  # noqa: BLE001 - a plugin may raise anything; it is reported
            return f"at another batch size: {describe(failure)}"
        if not error <= candidate.version.tolerance:
            return f"output error {error:.1e} at another batch size"
    return None
