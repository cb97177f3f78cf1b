"""Times fxopt against its best rival alone, where a verdict is too close for the common race."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from rivals import Call
from rows import RIVAL, Row
from verdicts import verdict

from fxopt.cost import measure

CLOSE = 0.94
"""The ratio from which on a duel is fought: what is less is ahead for certain."""

_SECONDS = 45.0
_TURNS = (16, 120)  # fewest and most of each of the two
_BURST = 9
_TURN_SECONDS = 0.1  # the pause and the warm-up of a turn
_TIMED_SECONDS = 0.4  # after which a turn ends


def duel(rows: Sequence[Row], calls: Mapping[str, Call]) -> None:
    """Notes in fxopt's rows how they do against their best rivals.

    Two builds of one model differ by 2 % in as many turns as the common race has time for, and the
    best of several equal rivals is the one that chance favoured. So both are timed once more.
    """
    for own in [row for row in rows if row.kind != RIVAL and row.measured]:
        best, ratio = (found := verdict(own, rows)).best, found.ratio
        if best is None or ratio is None or ratio < CLOSE:
            continue
        both = own.milliseconds + best.milliseconds
        own.duels[best.candidate] = ratio_of(calls[own.candidate], calls[best.candidate], both)
        what = f"{own.candidate} against {best.candidate}: {own.duels[best.candidate]:.3f}"
        print(f"  {what}, {ratio:.3f} in the common race", file=sys.stderr, flush=True)


def ratio_of(own: Callable[[], object], rival: Callable[[], object], milliseconds: float) -> float:
    """The latency of one over that of another, in as many turns as fit into a good half minute.

    Args:
        own: What is judged.
        rival: What it is judged by.
        milliseconds: What a call of both takes, about.
    """
    times = measure({"own": own, "rival": rival}, rounds=_turns(milliseconds), burst=_BURST)
    return times["own"].median / times["rival"].median


def _turns(milliseconds: float) -> int:
    """How many fit, of two candidates that together take so long a call."""
    fewest, most = _TURNS
    turn = 2 * _TURN_SECONDS + min(1e-3 * _BURST * milliseconds, 2 * _TIMED_SECONDS)
    return max(fewest, min(most, int(_SECONDS / turn)))
