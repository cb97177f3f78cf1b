"""Ties: two backends that the worker's race does not tell apart, and where that is decided."""

from __future__ import annotations

from collections.abc import Sequence

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
    if len(built) != 1 or _backends(candidate) == _backends(built[0]):
        return False
    tie = _TIE if candidate.builds_slowly else _CHEAP_TIE
    return candidate.merit <= min(tie * built[0].merit, _SHORT_MS)


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
