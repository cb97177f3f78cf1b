"""Which candidates there are for the versions of a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fxopt.backends import Backend
from fxopt.pipeline.lowering.assignment import whole
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import LoweringJob
from fxopt.pipeline.lowering.version import REDUCED, Version


def offers(versions: Sequence[Version], job: LoweringJob) -> list[Candidate]:
    """A candidate for each version and each variant of each backend.

    Those that a backend refuses, or that come after the time limit, carry the reason.
    """
    found = []
    for version in versions:
        for backend in job.backends:
            for variant in _variants(backend, version, job):
                candidate = Candidate(version, whole(variant))
                reason = variant.unsupported(version.program, job.target)
                if reason is not None:
                    candidate.drop(reason)
                found.append(candidate)
    return found


def _variants(backend: Backend, version: Version, job: LoweringJob) -> Iterator[Backend]:
    """The variants for a version; a reduced one is only worth running in a lower precision."""
    exact = backend.variants(job.target, exact=True)
    if version.exact:
        yield from exact
        return
    for variant in backend.variants(job.target, exact=False):
        if version.name != REDUCED or variant not in exact:
            yield variant
