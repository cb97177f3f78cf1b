"""Times fxopt against its best rival alone, where a verdict is too close for the common race."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rivals import Call
from rows import RIVAL, Row
from verdicts import verdict

from fxopt.cost import measure

CLOSE = 0.94
"""The ratio from which on a duel is fought: what is less is ahead for certain."""

_SECONDS = 45.0
_TURNS = (16, 60)  # fewest and most of each of the two
_BURST = 9
_TURN_SECONDS = 0.35  # the pause and the warm-up of a turn


def duel(rows: Sequence[Row], calls: Mapping[str, Call]) -> None:
    """Notes in fxopt's rows how they do against their best rivals.

    Two builds of one model differ by 2 % in as many turns as the common race has time for, and the
    best of several equal rivals is the one that chance favoured. So both are timed once more.
    """
    for own in [row for row in rows if row.kind != RIVAL and row.measured]:
        best, ratio = (found := verdict(own, rows)).best, found.ratio
        if best is None or ratio is None or ratio < CLOSE:
            continue
        pair = {row.candidate: calls[row.candidate] for row in (own, best)}
        times = measure(pair, rounds=_turns(own.milliseconds + best.milliseconds), burst=_BURST)
        own.duels[best.candidate] = times[own.candidate].median / times[best.candidate].median
        what = f"{own.candidate} against {best.candidate}: {own.duels[best.candidate]:.3f}"
        print(f"  {what}, {ratio:.3f} in the common race", file=sys.stderr, flush=True)


def _turns(milliseconds: float) -> int:
    """How many fit, of two candidates that together take so long a call."""
    fewest, most = _TURNS
    turn = 2 * _TURN_SECONDS + 1e-3 * _BURST * milliseconds
    return max(fewest, min(most, int(_SECONDS / turn)))
