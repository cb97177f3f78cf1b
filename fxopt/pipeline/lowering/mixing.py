"""A candidate that mixes runtimes: the backends that are right, each where it is fastest."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.pipeline.assignment import Assignment, Share
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import LoweringJob
from fxopt.pipeline.partition.mix import MixingJob, Rival, find_mixture

# Every further backend costs building and measuring all segments once more.
MOST_RIVALS = 3


def mixtures(
    timed: Sequence[Candidate], candidates: Sequence[Candidate], job: LoweringJob
) -> list[Candidate]:
    """A mixture of the backends that have run the fastest version whole, if it promises to win.

    Args:
        timed: What was right and has been raced in this process.
        candidates: All that there are.
        job: Says whether to try at all.
    """
    if not job.mix or job.late or not timed:
        return []
    version = min(timed, key=lambda candidate: candidate.median).version
    whole = [c for c in timed if c.version is version and c.assignment.takes_all]
    whole.sort(key=lambda candidate: candidate.median)
    flat = job.examples[0]
    rivals = [
        Rival(candidate.assignment.shares[0].backend, candidate.call(flat))
        for candidate in whole[:MOST_RIVALS]
    ]
    mixing = MixingJob(job.target, flat, rivals, job.deadline, job.progress)
    mixture = find_mixture(version.program, mixing)
    if mixture is None or not mixture.promising:
        return []
    shares = tuple(Share(backend, names) for backend, names in mixture.pieces)
    mixed = Candidate(version, Assignment(shares))
    return [mixed] if mixed.name not in {candidate.name for candidate in candidates} else []
