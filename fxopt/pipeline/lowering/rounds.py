"""The rounds of trials: what is asked for on every backend, then the rest where it may pay."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import LoweringJob
from fxopt.pipeline.lowering.screen import screen
from fxopt.pipeline.lowering.version import REDUCED

# A runtime that is behind two others on a program, or far behind one, is not the one to run a
# variation of it best.
_BEST_BACKENDS = 2
_FAR_BEHIND = 1.5

# What is so much slower in the worker will not win the race.
_HOPELESS = 1.5


def screen_in_rounds(candidates: Sequence[Candidate], job: LoweringJob) -> None:
    """Tries candidates in the worker, those of the version that was asked for first.

    Of the other versions, which are there to revert to or to run in a lower precision, only the
    backends that were best on that one are tried: compiling is what takes the time.
    """
    lowered = [c for c in candidates if not c.assignment.native and not c.record.reason]
    asked = [c.version.name for c in lowered if c.version.name != REDUCED][-1:]
    first = [c for c in lowered if c.version.name in asked]
    rest = [c for c in lowered if c not in first]
    screen(first, job)
    _drop_others(rest, first)
    screen([c for c in rest if not c.record.reason], job)
    best = min(map(_milliseconds, lowered), default=math.inf)
    for candidate in rest:  # what was asked for races in any case: a trial is one measurement
        candidate.beaten |= _HOPELESS * best < _milliseconds(candidate) < math.inf


def _drop_others(rest: Sequence[Candidate], first: Sequence[Candidate]) -> None:
    measured = [c for c in first if _milliseconds(c) < math.inf]
    ranked = sorted(measured, key=_milliseconds)
    names = list(dict.fromkeys(map(_backend, ranked)))
    far = _FAR_BEHIND * min(map(_milliseconds, ranked), default=math.inf)
    near = {_backend(c) for c in ranked if _milliseconds(c) <= far}
    best = [name for name in names if name in near][:_BEST_BACKENDS]
    for candidate in rest:
        if _backend(candidate) in set(names) - set(best):
            faster, version = " and ".join(best), ranked[0].version.name
            reason = f"not tried: slower than {faster} on the {version} version"
            candidate.drop(reason, slower=True)


def _backend(candidate: Candidate) -> str:
    return candidate.assignment.shares[0].backend.info.name


def _milliseconds(candidate: Candidate) -> float:
    measured = candidate.record.milliseconds
    return math.inf if measured is None or candidate.record.reason else measured
