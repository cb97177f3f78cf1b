"""Who may still be the fastest one, by timings in turns and by how much those vary."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fxopt.cost.steady import Turns, steadied

# How far turns on a virtual machine are off, relatively, and how many turns' worth of evidence that
# is: a few turns that happen to agree do not show that a machine is quiet.
_USUAL_NOISE = 0.12
_USUAL_WEIGHT = 0.5

_CERTAINTY = 2.5  # standard errors
NO_MATTER = 0.02  # who is faster by less need not be found out

_TO_DEVIATION = 1.4826  # from the median absolute deviation of a normal distribution
_OF_MEDIAN = 1.2533  # its standard error over that of a mean


class Standing(NamedTuple):
    """How a race stands.

    Attributes:
        left: Who may still win.
        settled: Whether further turns would tell nothing that matters.
    """

    left: list[str]
    settled: bool


class _Lag(NamedTuple):
    """How far one is behind another, as the logarithm of a ratio, and how far off that may be."""

    middle: float
    margin: float


def standing(turns: Mapping[str, Turns], racing: Sequence[str]) -> Standing:
    """Holds all against the fastest one, round by round, which takes the machine's drift out.

    Out is who is behind it by more than may be chance. It is settled where nobody else is left, or
    nobody who could be ahead by what matters.

    Args:
        turns: By candidate, as of :func:`fxopt.cost.steady.steadied`.
        racing: Those that took part in all rounds.
    """
    times = steadied(turns)
    best = min(racing, key=lambda name: statistics.median(times[name]))
    lags = {name: _lag(turns[name], turns[best]) for name in racing if name != best}
    left = {name: lag for name, lag in lags.items() if lag.middle <= lag.margin}
    settled = all(lag.margin - lag.middle < NO_MATTER for lag in left.values())
    return Standing([name for name in racing if name == best or name in left], settled)


def _lag(own: Turns, best: Turns) -> _Lag:
    logs = [_log(a) - _log(b) for a, b in zip(own, best, strict=True)]
    middle, rounds = statistics.median(logs), len(logs)
    seen = _TO_DEVIATION * statistics.median(abs(each - middle) for each in logs)
    squares = _USUAL_WEIGHT * _USUAL_NOISE**2 + rounds * seen**2
    noise = math.sqrt(squares / (_USUAL_WEIGHT + rounds))
    return _Lag(middle, _CERTAINTY * _OF_MEDIAN * noise / math.sqrt(rounds))


def _log(turn: Sequence[float]) -> float:
    return math.log(statistics.median(turn))
