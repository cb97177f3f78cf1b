"""What this process does of a build while a worker builds the same."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from fxopt.cost import memory_left
from fxopt.emit import emit
from fxopt.pipeline.assignment import regions_at_entry
from fxopt.pipeline.lowering.attempt import Parcels, attempt
from fxopt.pipeline.lowering.candidate import Candidate, describe
from fxopt.pipeline.lowering.job import LoweringJob

ENOUGH = 0.4
"""The share of the memory that is to be left for what is done beside something else."""

_TICK_SECONDS = 0.1


def attempt_and_prepare(
    candidate: Candidate, parcels: Parcels, others: Sequence[Candidate], job: LoweringJob
) -> None:
    """Tries a candidate in its worker as :func:`attempt` does, and prepares it here meanwhile."""
    parcel = parcels.of(candidate.version)
    with ThreadPoolExecutor(1) as thread:
        trial = thread.submit(attempt, candidate, parcel, others, job)
        try:
            prepare(candidate, job)
            trial.result()
        except BaseException:  # such as Ctrl-C: nobody would wait for it
            while not trial.done():
                close_workers(job)
                wait([trial], _TICK_SECONDS)
            raise


def prepare(candidate: Candidate, job: LoweringJob) -> None:
    """Lowers a candidate as far as that goes without compiling, for :func:`build` to go on with.

    What fails is shown, and left to the trial and to the build, which go on without. Nothing could
    end it when a time limit has passed, so it is left out where there is one.
    """
    if candidate.prepared is not None or job.deadline is not None or memory_left() < ENOUGH:
        return
    try:
        program = candidate.assignment.applied(candidate.version.program, job.target)
        module = emit(program, job.argument_names)
        for region, inputs in regions_at_entry(program, job.examples[0]):
            region.prepare(*inputs)
    except Exception as failure:  # noqa: BLE001 - a plugin may raise anything
        job.progress(f"{candidate.record.backend} is not prepared: {describe(failure)}")
        return
    candidate.prepared = module


def close_workers(job: LoweringJob) -> None:
    """Ends them in the middle of what they are at."""
    for isolation in job.isolations:
        isolation.close()
