"""What is tried in the place of candidates that failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fxopt.pipeline.assignment import Assignment, Share
from fxopt.pipeline.lowering.candidate import Candidate


def spares(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same with their backends' spares, for those that were tried in vain.

    Args:
        candidates: All that there are; none of them is offered again.
    """
    known = {candidate.name for candidate in candidates}
    failed = [c for c in candidates if _has_failed(c)]
    found = [each for candidate in failed for each in _spares(candidate)]
    return [candidate for candidate in found if candidate.name not in known]


def _has_failed(candidate: Candidate) -> bool:
    """Whether it was built in vain; what ran right, and is out for another reason, did not fail."""
    record = candidate.record
    return (
        bool(record.reason) and not record.slower and record.seconds > 0 and not candidate.measured
    )


def _spares(candidate: Candidate) -> Iterator[Candidate]:
    """None where no backend has one."""
    shares = tuple(_spare(share) for share in candidate.assignment.shares)
    if shares != candidate.assignment.shares:
        yield Candidate(candidate.version, Assignment(shares))


def _spare(share: Share) -> Share:
    backend = share.backend.spare()
    return share if backend is None else replace(share, backend=backend)
