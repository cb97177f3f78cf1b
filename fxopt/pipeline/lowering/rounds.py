"""The rounds of trials: the version that goes furthest on every backend, then the rest if it pays.

Compiling is what takes the time, on some backends ten times as long as on others. So what builds
fast goes first, and says what is not worth building slowly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from fxopt.cost import batch_scale, multiply_adds, peak_products
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import LoweringJob
from fxopt.pipeline.lowering.screen import screen
from fxopt.pipeline.lowering.version import LOSSY, REDUCED

# A runtime that is behind two others on a program, or far behind one, is not the one to run a
# variation of it best.
_BEST_BACKENDS = 2
_FAR_BEHIND = 2.0

# What is so much slower in the worker, where each is measured once, will not win the race.
_HOPELESS = 2.0
_BETTER_PRECISION = 1.1

# Kernels may be faster than the matrix product that gave the peak (convolutions: 1.07 of it), leave
# out products with what pads an image, and run when the machine is faster (1.2 was seen).
_OVER_PEAK = 1.5


def screen_in_rounds(candidates: Sequence[Candidate], job: LoweringJob) -> None:
    """Tries candidates in the worker, those of the last version first: it should be the fastest.

    Of the other versions, which are there to revert to, only those backends are tried that were
    best on that one among all that have the other one on offer.
    """
    lowered = [c for c in candidates if not c.assignment.native and not c.record.reason]
    last = [c.version.name for c in lowered][-1:]
    first = [c for c in lowered if c.version.name in last]
    rest = [c for c in lowered if c not in first]
    _screen_worthwhile(first, lowered, job, at_once=True)
    _drop_others(rest, first)
    _drop_beyond_peak(rest, _best(first), job)
    _screen_worthwhile(_as_fast(rest, first), lowered, job)
    best = _best(lowered)
    for candidate in rest:  # the first ones race in any case: a trial is one measurement
        candidate.beaten |= _HOPELESS * best < _milliseconds(candidate) < math.inf


def _screen_worthwhile(
    candidates: Sequence[Candidate],
    lowered: Sequence[Candidate],
    job: LoweringJob,
    at_once: bool = False,
) -> None:
    """Tries those that build fast, then those of the others; none that is hopeless by then."""
    left = [c for c in candidates if not c.record.reason]
    fast = [c for c in lowered if not c.builds_slowly]
    slow = [c for c in left if c.builds_slowly]

    def judge(candidate: Candidate) -> None:
        _drop_hopeless(candidate, fast)
        if candidate.builds_slowly and not candidate.record.reason:
            _drop_slower_precision(candidate, slow, fast)

    screen(left, job, rivals=lowered, judge=judge, at_once=at_once)


def _as_fast(rest: Sequence[Candidate], first: Sequence[Candidate]) -> list[Candidate]:
    """In the order of how fast their backends were on what was asked for.

    What the best one takes says whether the others are worth a trial.
    """
    return sorted(rest, key=lambda c: _best(f for f in first if _backend(f) == _backend(c)))


def _drop_hopeless(candidate: Candidate, fast: Sequence[Candidate]) -> None:
    """Drops it if its version is far behind on the backends that build fast."""
    own = _best(c for c in fast if c.version is candidate.version)
    best = _best(fast)
    if _HOPELESS * best < own < math.inf:
        version = candidate.version.name
        reason = f"not tried: elsewhere the {version} version takes {own / best:.1f} times as long"
        candidate.drop(reason, slower=True)


def _drop_beyond_peak(rest: Sequence[Candidate], best: float, job: LoweringJob) -> None:
    """Drops those in float32 whose arithmetic alone takes longer than ``best`` milliseconds."""
    in_float = [c for c in rest if _is_float(c) and not c.record.reason]
    if not in_float or best == math.inf or job.target.name != "cpu":
        return
    peak = _OVER_PEAK * peak_products(job.target.threads)
    for candidate in in_float:
        program = candidate.version.program
        work = sum(multiply_adds(program).values()) * batch_scale(program, job.examples[0])
        least = work / peak
        if least > best:
            what = f"at this machine's peak the {candidate.version.name} version takes"
            reason = f"not tried: {what} {least:.3g} ms, another one {best:.3g}"
            candidate.drop(reason, slower=True)


def _is_float(candidate: Candidate) -> bool:
    """Whether all that it multiplies is float32."""
    return candidate.version.name not in (REDUCED, LOSSY) and _precision(candidate) == "f32"


def _drop_slower_precision(
    candidate: Candidate, slow: Sequence[Candidate], fast: Sequence[Candidate]
) -> None:
    """Drops it if another precision, which its backend has too, is faster on the others."""
    version, precision = candidate.version, _precision(candidate)
    own = _best(c for c in fast if c.version is version and _precision(c) == precision)
    for other in {_precision(c) for c in slow if _is_variant(c, candidate)} - {precision}:
        best = _best(c for c in fast if c.version is version and _precision(c) == other)
        if _BETTER_PRECISION * best < own < math.inf:
            ratio = own / best
            candidate.drop(
                f"not tried: elsewhere {other} is {ratio:.1f} times as fast", slower=True
            )


def _is_variant(candidate: Candidate, other: Candidate) -> bool:
    return candidate.version is other.version and _backend(candidate) == _backend(other)


def _precision(candidate: Candidate) -> str:
    return candidate.assignment.shares[0].backend.precision


def _best(candidates: Iterable[Candidate]) -> float:
    return min(map(_milliseconds, candidates), default=math.inf)


def _drop_others(rest: Sequence[Candidate], first: Sequence[Candidate]) -> None:
    """Keeps, of each other version, those of the best backends that have it on offer."""
    measured = [c for c in first if _milliseconds(c) < math.inf]
    ranked = sorted(measured, key=_milliseconds)
    far = _FAR_BEHIND * _best(ranked)
    names = list(dict.fromkeys(map(_backend, ranked)))
    near = {_backend(c) for c in ranked if _milliseconds(c) <= far}
    for candidate in rest:
        offered = {_backend(c) for c in rest if c.version is candidate.version}
        best = [name for name in names if name in near & offered][:_BEST_BACKENDS]
        if _backend(candidate) in set(names) - set(best):
            faster, version = " and ".join(best or names[:1]), ranked[0].version.name
            reason = f"not tried: slower than {faster} on the {version} version"
            candidate.drop(reason, slower=True)


def _backend(candidate: Candidate) -> str:
    return candidate.assignment.shares[0].backend.info.name


def _milliseconds(candidate: Candidate) -> float:
    measured = candidate.record.milliseconds
    return math.inf if measured is None or candidate.record.reason else measured
