"""The last round: further settings of the backend that has won."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.pipeline.assignment import whole
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import LoweringJob


def tunings(timed: Sequence[Candidate], job: LoweringJob) -> list[Candidate]:
    """Candidates that differ from the fastest one by settings of its backend alone.

    Args:
        timed: What was right and has been raced.
        job: Says whether there is time.
    """
    best = min(timed, key=lambda candidate: candidate.median)
    if job.late or best.assignment.native or not best.assignment.takes_all:
        return []
    backend, program = best.assignment.shares[0].backend, best.version.program
    found = backend.tunings(program, job.target, best.median)
    raced = {candidate.name for candidate in timed}
    tuned = [Candidate(best.version, whole(each)) for each in found]
    return [candidate for candidate in tuned if candidate.name not in raced]
