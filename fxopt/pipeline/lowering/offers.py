"""Which candidates there are for the versions of a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fxopt.backends import Backend
from fxopt.pipeline.assignment import Assignment, Share, whole
from fxopt.pipeline.lowering.candidate import Candidate, describe
from fxopt.pipeline.lowering.job import LoweringJob
from fxopt.pipeline.lowering.version import REDUCED, Version
from fxopt.pipeline.partition import partition


def offers(versions: Sequence[Version], job: LoweringJob) -> list[Candidate]:
    """A candidate for each version and each variant of each backend.

    Those that a backend refuses carry the reason.
    """
    return [
        candidate
        for version in versions
        for backend in job.backends
        for candidate in _offers(version, backend, job)
    ]


def _offers(version: Version, backend: Backend, job: LoweringJob) -> list[Candidate]:
    try:
        return [_offer(version, variant, job) for variant in _variants(backend, version, job)]
    except Exception as failure:  # noqa: BLE001 - a plugin may raise anything; it is reported
        candidate = Candidate(version, whole(backend))
        candidate.drop(f"it cannot say what it supports: {describe(failure)}")
        return [candidate]


def _offer(version: Version, backend: Backend, job: LoweringJob) -> Candidate:
    """The whole version on a backend, or where it refuses single operations, the rest of it."""
    reason = backend.unsupported(version.program, job.target)
    if reason is None:
        return Candidate(version, whole(backend))
    found = partition(version.program, backend, job.target)
    if not found.parts:
        candidate = Candidate(version, whole(backend))
        candidate.drop(reason)
        return candidate
    candidate = Candidate(version, Assignment(tuple(Share(backend, part) for part in found.parts)))
    candidate.note(outside=found.outside)
    return candidate


def _variants(backend: Backend, version: Version, job: LoweringJob) -> Iterator[Backend]:
    """The variants for a version; a reduced one is only worth running in a lower precision."""
    exact = backend.variants(version.program, job.target, exact=True)
    if version.exact:
        yield from exact
        return
    for variant in backend.variants(version.program, job.target, exact=False):
        if version.name != REDUCED or variant not in exact:
            yield variant
