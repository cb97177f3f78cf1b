"""The last round: what has won is compared at other batch sizes, and judged by the caller."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.cost import Latency
from fxopt.pipeline.lowering.candidate import Candidate, build
from fxopt.pipeline.lowering.job import SLOW_MS, LoweringJob
from fxopt.pipeline.lowering.race import race_late
from fxopt.pipeline.lowering.sizes import wrong_elsewhere


def first_right(
    candidates: Sequence[Candidate],
    plain: Candidate,
    before: Latency,
    job: LoweringJob,
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
    while left and (candidate := min(left, key=lambda c: c.preference)) is not plain:
        if candidate.module is None:
            before = _build_and_time(candidate, candidates, before, job)
            if candidate.module is None:
                left.remove(candidate)
            continue
        left.remove(candidate)
        if candidate.median > before.median:
            continue
        reason = wrong_elsewhere(candidate, job)
        if reason is None:
            # where a call takes little, another one after the race tells more than the first
            slow = candidate.median > SLOW_MS
            reason = job.accept(candidate.module, candidate.outputs if slow else None)
        if reason is None:
            return candidate
        candidate.note(reason=reason)
    return plain


def _build_and_time(
    candidate: Candidate, others: Sequence[Candidate], before: Latency, job: LoweringJob
) -> Latency:
    """Builds one that was not wanted before; the latency of the original."""
    build(candidate, job)
    return before if candidate.module is None else race_late([candidate], (), others, before, job)
