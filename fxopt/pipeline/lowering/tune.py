"""The last round: further settings of the backends that lead."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch

from fxopt.pipeline.assignment import whole
from fxopt.pipeline.lowering.candidate import Candidate, describe
from fxopt.pipeline.lowering.job import LoweringJob

# What its backend's further settings may make up for.
_WITHIN_REACH = 1.1


def leaders(timed: Sequence[Candidate]) -> list[Candidate]:
    """The fastest candidate of each version, as far as it may still win; fastest first."""
    ranked = sorted(timed, key=lambda candidate: candidate.median)
    firsts = {candidate.version.name: candidate for candidate in reversed(ranked)}
    reach = _WITHIN_REACH * ranked[0].median
    return [c for c in ranked if c in firsts.values() and c.median <= reach]


def tunings(
    timed: Sequence[Candidate], candidates: Sequence[Candidate], job: LoweringJob
) -> list[Candidate]:
    """Candidates that differ from a leader by settings of its backend alone.

    Args:
        timed: What was right and has been raced.
        candidates: All that there are; none of them is offered again.
        job: Says whether there is time.
    """
    if job.late or not timed:
        return []
    known = {candidate.name for candidate in candidates}
    backends = {share.backend.info.name for c in candidates for share in c.assignment.shares}
    tuned = [each for leader in leaders(timed) for each in _tuned(leader, backends, job)]
    return [candidate for candidate in tuned if candidate.name not in known]


def _tuned(leader: Candidate, backends: Set[str], job: LoweringJob) -> list[Candidate]:
    if leader.assignment.native or not leader.assignment.takes_all:
        return []
    backend, program = leader.assignment.shares[0].backend, leader.version.program
    inputs = [value for value in job.examples[0] if isinstance(value, torch.Tensor)]
    try:
        found = backend.tunings(program, inputs, job.target, leader.median)
    except Exception as failure:  # noqa: BLE001 - a plugin may raise anything; it is reported
        job.progress(f"{backend.label} cannot say what else to try: {describe(failure)}")
        return []
    on_offer = [each for each in found if each.info.name in backends]
    return [Candidate(leader.version, whole(each)) for each in on_offer]
