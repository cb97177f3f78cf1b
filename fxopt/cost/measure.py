"""Latency of several candidates, measured so that their ratios hold on a noisy machine."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fxopt.cost.idle import wait_until_idle
from fxopt.cost.lead import standing
from fxopt.cost.steady import steadied

# Worker threads of some runtimes spin after a call, for 200 ms at most, and would slow the next
# candidate down; then come calls that only warm caches and cores up again, which for some runtimes
# takes longer than for others (the first calls are 10 % slower than those after 50 ms). A turn is
# off by what the machine does meanwhile, however long it is, so that many short ones tell more than
# a few long ones: of two that are alike, a race of three seconds had one ahead by 4.2 % (standard
# deviation) with turns of one call of 54 ms, 7 to 8 % with turns of three and five; of 111 ms, by
# 4.8 and 5.9 to 8.7 %. Of 10 ms, by 4.5 % with one call a turn and 2.6 with five.
_PAUSE_SECONDS = 0.25
_WARM_UP_MS = 60.0
_TURN_MS = 100.0
_SLOW_MS = 100.0  # a slow call is long enough to warm up within itself
_VERY_SLOW_MS = 300.0  # and one in which that makes a fiftieth at most counts already

_FEWEST_ROUNDS = 2  # before a candidate is taken out


@dataclass(frozen=True)
class Latency:
    """Timings of one candidate.

    Attributes:
        milliseconds: Every timed call; where several candidates were timed in turns, corrected
            for the changing speed of the machine.
    """

    milliseconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of all timed calls, in milliseconds."""
        return statistics.median(self.milliseconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, in milliseconds."""
        if len(self.milliseconds) < 4:
            return (max(self.milliseconds) - min(self.milliseconds)) / 2
        low, _, high = statistics.quantiles(self.milliseconds, n=4)
        return (high - low) / 2

    def joined(self, other: Latency) -> Latency:
        """All timings of both."""
        return Latency(self.milliseconds + other.milliseconds)

    def scaled(self, factor: float) -> Latency:
        """The same on a machine that takes so many times as long."""
        return Latency(tuple(factor * each for each in self.milliseconds))


def measure(
    candidates: Mapping[str, Callable[[], object]],
    *,
    burst: int = 5,
    watch: Callable[[str], None] = lambda name: None,
    **rules: Any,
) -> dict[str, Latency]:
    """Times callables in turns, in bursts.

    Args:
        candidates: What to call, by name.
        burst: Timed calls a turn; fewer where a call is slow.
        watch: Is told whose turn begins.
        rules: Of the race, as of :func:`race_in_turns`.

    Returns:
        The timings by name; at least one round of each.
    """

    def turn(name: str) -> Sequence[float]:
        watch(name)
        return take_turn(candidates[name], burst)

    return race_in_turns({name: partial(turn, name) for name in candidates}, **rules)


def race_in_turns(
    candidates: Mapping[str, Callable[[], Sequence[float]]],
    *,
    rounds: int = 5,
    narrowing: bool = False,
    seconds: float | None = None,
    fewest: int = _FEWEST_ROUNDS,
    first: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Latency]:
    """Compares what takes its turn when it is called, wherever it runs, and says how long it took.

    All candidates have a turn in each round, so that a machine whose speed drifts slows all alike,
    which is then taken out (:func:`steadied`), and in another order each time, so that none
    suffers for what always comes before it.

    Args:
        candidates: A turn of each, in milliseconds a call, by name.
        rounds: How often each candidate gets its turn.
        narrowing: Whether to take those out between rounds that are slower than the best one by
            more than chance, and to end when no one is left who may be faster by what matters
            (:func:`standing`). Without it, all get all their turns.
        seconds: No further round begins once so much time was spent and there were ``fewest``.
        fewest: Rounds that time is taken for in any case.
        first: The first round, where all have just had a turn.

    Returns:
        The timings by name; at least one round of each.
    """
    turns = {name: [first[name]] if first else [] for name in candidates}
    racing, order, start = list(candidates), random.Random(0), time.monotonic()
    for done in range(2 if first else 1, rounds + 1):
        order.shuffle(racing)
        for name in racing:
            turns[name].append(candidates[name]())
        if done < _FEWEST_ROUNDS:
            continue
        if seconds is not None and done >= fewest and time.monotonic() - start > seconds:
            break
        if narrowing:
            racing, settled = standing(turns, racing)
            if settled:
                break
    return {name: Latency(tuple(times)) for name, times in steadied(turns).items()}


def fastest(latencies: Mapping[str, Latency]) -> list[str]:
    """The names, fastest first."""
    return sorted(latencies, key=lambda name: latencies[name].median)


def take_turn(candidate: Callable[[], object], calls: int = 5) -> Sequence[float]:
    """Milliseconds of so many calls in a row, after some that warm up; of slow ones, of fewer."""
    wait_until_idle(_PAUSE_SECONDS)
    last = _warm_up(candidate)
    if last > _VERY_SLOW_MS:
        return [last]
    calls = min(calls, max(1, int(_TURN_MS / max(last, 1e-3))))
    return [_time_ms(candidate) for _ in range(calls)]


def _warm_up(candidate: Callable[[], object]) -> float:
    """Calls for a while, at least twice if calls are not slow; what the last one took."""
    last = spent = _time_ms(candidate)
    if last < _SLOW_MS:
        last = _time_ms(candidate)
    while (spent := spent + last) < _WARM_UP_MS:
        last = _time_ms(candidate)
    return last


def _time_ms(candidate: Callable[[], object]) -> float:
    start = time.perf_counter()
    candidate()
    return (time.perf_counter() - start) * 1e3
