"""Ties: two backends that the worker's race does not tell apart, and where that is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import SLOW_MS

# So close in the worker, backends may come in the other order: what one of them compiles of the
# same program differs by 3 % each time. Settings of one backend are not worth that much.
_TIE = 1.04

# What builds fast may as well be built here, since the worker's race may be wrong by chance: of
# four races of resnet18 one had a runtime 7 % ahead of another, which it is 10 % behind.
_CHEAP_TIE = 1.15

# Up to here building takes little longer than a race: the code that is kept can race itself.
_SHORT_MS = 50.0


def decided_here(candidate: Candidate, built: Sequence[Candidate]) -> bool:
    """Whether a candidate ties with the only one that is built in this process so far.

    Args:
        candidate: Was raced in the worker, and is not built here yet.
        built: What is.
    """
    return len(built) == 1 and _ties_here(candidate, candidate.merit, built[0], built[0].merit)


def left_to_decide_here(medians: Mapping[Candidate, float]) -> bool:
    """Whether further turns in the worker would be for nothing.

    That is so where two are left and both will be built in this process, to race there.

    Args:
        medians: Milliseconds so far of those that may still be the fastest one.
    """
    merits = {candidate: candidate.handicap * took for candidate, took in medians.items()}
    ranked = sorted(merits, key=merits.__getitem__)
    if len(ranked) != 2:
        return False
    first, second = ranked
    return _ties_here(second, merits[second], first, merits[first])


def _ties_here(candidate: Candidate, merit: float, best: Candidate, best_merit: float) -> bool:
    if _backends(candidate) == _backends(best):
        return False
    tie = _TIE if candidate.builds_slowly else _CHEAP_TIE
    return merit <= min(tie * best_merit, _SHORT_MS)


def decided_apart(raced: Sequence[Candidate]) -> list[Candidate]:
    """The two that tie, where further turns in the worker are the cheapest way to decide it.

    Short calls are decided in this process, and each turn of slow ones takes long.

    Args:
        raced: What has raced in the worker and may win.
    """
    ranked = sorted(raced, key=lambda candidate: candidate.merit)
    others = [c for c in ranked if _backends(c) != _backends(ranked[0])]
    if not others or not _SHORT_MS < ranked[0].median <= SLOW_MS:
        return []
    return [ranked[0], others[0]] if others[0].merit <= _TIE * ranked[0].merit else []


def _backends(candidate: Candidate) -> set[str]:
    return {share.backend.info.name for share in candidate.assignment.shares}
