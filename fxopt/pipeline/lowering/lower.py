"""Lowering: every way to run a program that is on offer is tried, and the fastest one kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from fxopt.cost import Latency
from fxopt.emit import OptimizedModule, emit
from fxopt.pipeline.assignment import Assignment
from fxopt.pipeline.lowering.candidate import Candidate, build
from fxopt.pipeline.lowering.first_use import compare_on_first_use
from fxopt.pipeline.lowering.job import SLOW_MS, LoweringJob
from fxopt.pipeline.lowering.mixing import MOST_RIVALS, mixtures
from fxopt.pipeline.lowering.offers import offers
from fxopt.pipeline.lowering.race import (
    held,
    join,
    race,
    race_again,
    race_apart,
    race_late,
)
from fxopt.pipeline.lowering.rounds import screen_in_rounds
from fxopt.pipeline.lowering.screen import screen
from fxopt.pipeline.lowering.spare import spares
from fxopt.pipeline.lowering.ties import decided_apart, decided_here
from fxopt.pipeline.lowering.tune import leaders, tunings
from fxopt.pipeline.lowering.tuning import Timing, drop_slow, timings, tuning_file, updated
from fxopt.pipeline.lowering.verify import first_right
from fxopt.pipeline.lowering.version import Version
from fxopt.report import RegionRecord

# So close to the original, what was built gets further turns before it is given up.
_SECOND_LOOK = 1.25


@dataclass(frozen=True)
class Lowered:
    """The outcome.

    Attributes:
        module: The emitted module.
        version: Name of the version that it runs.
        tolerance: Relative output error against the original that this version may show.
        assignment: Which backend takes what of it.
        record: For the report.
        before: Latency of the original.
        after: Latency of ``module``.
    """

    module: OptimizedModule
    version: str
    tolerance: float
    assignment: Assignment
    record: RegionRecord
    before: Latency
    after: Latency


def lower(versions: Sequence[Version], job: LoweringJob) -> Lowered:
    """Tries each version on each backend and keeps the fastest one that is right.

    The last of ``versions`` is what the passes made; the ones before it are what it can be
    reverted to. The original model runs in the same race, so the result is never slower than
    that: when nothing beats it, the program is emitted as it is.
    """
    with ExitStack() as stack:
        for isolation in reversed(job.isolations):  # this process shares those of the first
            stack.enter_context(isolation.shared_files())
        return _lower(versions, job)


def _lower(versions: Sequence[Version], job: LoweringJob) -> Lowered:
    candidates = offers(versions, job)
    tuning = tuning_file(candidates, job)
    known = tuning.read()
    drop_slow(candidates, known)
    winner, before = _choose(versions[0], candidates, job)
    while _brought_back(candidates, winner, known):
        winner, before = _choose(versions[0], candidates, job)
    tuning.write(updated(known, timings(candidates)))
    return _outcome(winner, candidates, before, job)


def _choose(
    original: Version, candidates: list[Candidate], job: LoweringJob
) -> tuple[Candidate, Latency]:
    """The fastest candidate that is right, or the program as it is; the latency of the original.

    What is tried besides joins the candidates.
    """
    try:
        candidates += _try_apart(candidates, job)
        finalists = _finalists(candidates, job)
        plain = _plain(original, candidates, job)
        if plain not in finalists and not _are_slow(finalists, job):
            candidates += [] if plain in candidates else [plain]
            finalists.append(plain)
        before = _race_here(finalists, candidates, job)
    finally:
        job.forget([candidate.key for candidate in candidates])
        for candidate in candidates:
            candidate.prepared = None
    for candidate in candidates:
        if candidate.beaten:
            took = f"{candidate.record.milliseconds:.3g} ms"
            candidate.drop(f"clearly slower in its trial: {took}", slower=True)
    hopeful = [candidate for candidate in candidates if candidate.hopeful]
    winner = first_right(hopeful, plain, before, job)
    if winner is plain and plain not in finalists:
        return _second_look(plain, candidates, before, job)
    return winner, before


def _second_look(
    plain: Candidate, candidates: list[Candidate], before: Latency, job: LoweringJob
) -> tuple[Candidate, Latency]:
    """Races what nothing seems to beat for the first time, and again what came close to it.

    Slow calls have few turns, and where the machine was slow in those of one candidate, all that
    went into it would be lost.
    """
    built = [c for c in candidates if c.hopeful and c.module is not None]
    close = [c for c in built if c.median <= _SECOND_LOOK * before.median]
    before = race_late([plain], close, candidates, before, job)
    candidates.append(plain)
    return first_right([*close, plain], plain, before, job), before


def _brought_back(
    candidates: Sequence[Candidate], winner: Candidate, known: Mapping[str, Timing]
) -> bool:
    """Gives those another chance that were only slower than one that has been refused since.

    Beside plain torch that is all of them, beside another winner those that were faster than it.
    """

    def may_win(candidate: Candidate) -> bool:
        took = candidate.record.milliseconds
        if took is None and candidate.name in known:
            took = known[candidate.name].milliseconds
        return winner.assignment.native or (took is not None and took < winner.median)

    refused = [c for c in candidates if c.record.reason and c.module is not None]
    slower = [c for c in candidates if c.record.slower and may_win(c)]
    for candidate in refused:
        candidate.module = None
    for candidate in slower if refused else ():
        candidate.note(reason="", slower=False)
        candidate.beaten = False
    return bool(refused and slower)


def _try_apart(candidates: Sequence[Candidate], job: LoweringJob) -> list[Candidate]:
    """Tries and races candidates in the worker, then further settings of those that lead.

    Returns:
        The candidates with those settings, and those that were tried in the place of others.
    """
    screen_in_rounds(candidates, job)
    instead = spares(candidates)
    screen(instead, job, rivals=candidates)
    known = [*candidates, *instead]
    race_apart(known, job)
    raced = [candidate for candidate in known if candidate.hopeful and candidate.raced]
    late = tunings(raced, known, job)
    screen(late, job, rivals=raced)
    if any(candidate.measured for candidate in late):
        race_again(leaders(raced), late, raced, job)
    raced = [candidate for candidate in (*raced, *late) if candidate.hopeful and candidate.raced]
    if tied := decided_apart(raced):
        race_again(tied, [], raced, job)
    return [*instead, *late]


def _finalists(candidates: list[Candidate], job: LoweringJob) -> list[Candidate]:
    """Builds what races in this process: the best that the worker found, and what it cannot try.

    What is built in the place of what fails joins the candidates.
    """
    elsewhere = [candidate for candidate in candidates if candidate.hopeful and candidate.measured]
    elsewhere.sort(key=lambda candidate: candidate.preference)
    here = [c for c in candidates if c.hopeful and not c.measured]
    if _are_slow(elsewhere, job):
        here = [c for c in here if not _drop_native(c)]
    built: list[Candidate] = []
    for candidate in elsewhere:
        if len(built) < (MOST_RIVALS if job.mix else 1) or decided_here(candidate, built):
            build(candidate, job)
            built += [candidate] if candidate.hopeful else []
        else:
            candidate.module = None  # it was built early, and has lost since
    for candidate in here:
        build(candidate, job)
    instead = spares(here)
    for candidate in instead:
        build(candidate, job)
    candidates += instead
    return [c for c in (*elsewhere, *here, *instead) if c.module is not None]


def _are_slow(candidates: Sequence[Candidate], job: LoweringJob) -> bool:
    """Whether what is spent between kernels is nothing beside what each of them takes.

    Then torch as it is has little to gain over the original, which calls the same kernels, and what
    was behind in the worker is behind here, too. Each turn takes as long as the call.
    """
    took = [candidate.record.milliseconds or 0.0 for candidate in candidates]
    return not job.mix and min(took, default=0.0) > SLOW_MS


def _drop_native(candidate: Candidate) -> bool:
    """Drops what calls the kernels of the original; whether it does."""
    if candidate.assignment.native:
        reason = "not tried: it calls the kernels that the original calls, and those are slow"
        candidate.drop(reason, slower=True)
    return candidate.assignment.native


def _race_here(
    finalists: list[Candidate], candidates: list[Candidate], job: LoweringJob
) -> Latency:
    """Races the finalists and the original, then what else may beat them.

    What has raced in the worker alone is taken to be as far behind the others as it was there.
    """
    elsewhere = held(finalists)
    before = race(finalists, job)
    join(elsewhere, [c for c in candidates if c.module is None])
    for challengers in (tunings, mixtures):
        timed = [candidate for candidate in finalists if candidate.module is not None]
        late = challengers(timed, candidates, job)
        before = _challenge(late, timed, candidates, before, job)
        candidates += late
        finalists += [candidate for candidate in late if candidate.module is not None]
    return before


def _challenge(
    late: Sequence[Candidate],
    timed: Sequence[Candidate],
    candidates: Sequence[Candidate],
    before: Latency,
    job: LoweringJob,
) -> Latency:
    """Races candidates that came late against the best so far and the original."""
    screen(late, job, rivals=timed)
    for candidate in late:
        build(candidate, job)
    right = [candidate for candidate in late if candidate.module is not None]
    if not right:
        return before
    close = [c for c in leaders(timed) if not c.assignment.native]
    return race_late(right, close, candidates, before, job)


def _plain(version: Version, candidates: Sequence[Candidate], job: LoweringJob) -> Candidate:
    """The program as it is: what is kept when nothing on offer beats the original."""
    for candidate in candidates:
        is_native = candidate.assignment.native and candidate.module is not None
        if candidate.version is version and is_native:
            return candidate
    plain = Candidate(version, Assignment(()))
    plain.module = emit(version.program, job.argument_names)
    return plain


def _outcome(
    winner: Candidate, candidates: Sequence[Candidate], before: Latency, job: LoweringJob
) -> Lowered:
    assert winner.module is not None
    assert winner.latency is not None
    compare_on_first_use(winner.module, winner.version.tolerance)
    operations = sum(n.op.startswith("call_") for n in winner.version.program.nodes)
    ranked = sorted(candidates, key=lambda candidate: candidate.record.milliseconds or math.inf)
    record = RegionRecord(
        job.name, operations, winner.record, tuple(candidate.record for candidate in ranked)
    )
    return Lowered(
        winner.module,
        winner.version.name,
        winner.version.tolerance,
        winner.assignment,
        record,
        before,
        winner.latency,
    )
