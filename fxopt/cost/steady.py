"""Takes the changing speed of the machine out of timings that were made in turns."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

_SWEEPS = 8  # the fit settles in three or four

Turns = Sequence[Sequence[float]]
"""Milliseconds of the calls of one candidate, a sequence for each round that it took part in."""


def steadied(turns: Mapping[str, Turns]) -> dict[str, list[float]]:
    """Timings as they would be had the machine been equally fast in all rounds.

    A virtual machine may run at half its speed for seconds. Whoever is timed in turns suffers from
    that alike, but medians of each on its own do not show it: where slow and fast rounds are about
    as many, each median falls on one side or the other by chance. So every call is divided by how
    slow its round was, found by a median polish (Tukey, Exploratory Data Analysis, 1977, chapter
    11) of the logarithms of turns, with candidates as rows and rounds as columns.

    Args:
        turns: By candidate; those that took part in fewer rounds took part in the first ones.

    Returns:
        The corrected timings by candidate, in order. One candidate alone has nothing to be held
        against, and its timings stay as they are.
    """
    slowness = _slowness(turns)
    return {
        name: [time / slow for turn, slow in zip(own, slowness, strict=False) for time in turn]
        for name, own in turns.items()
    }


def _slowness(turns: Mapping[str, Turns]) -> list[float]:
    """How slow the machine was in each round, 1 for a typical one."""
    logs = {
        name: [math.log(statistics.median(turn)) for turn in own] for name, own in turns.items()
    }
    rounds = max(map(len, logs.values()), default=0)
    if len(logs) < 2:
        return [1.0] * rounds
    # From the rounds that all took part in: else those that only the fast ones were left for would
    # pass for fast rounds, and the fit would not come away from there.
    common = min(map(len, logs.values()))
    effects = {name: statistics.median(own[:common]) for name, own in logs.items()}
    levels = [0.0] * rounds
    for _ in range(_SWEEPS):
        levels = [_level(logs, effects, index) for index in range(rounds)]
        effects = {
            name: statistics.median(log - level for log, level in zip(own, levels, strict=False))
            for name, own in logs.items()
        }
    middle = statistics.median(levels)
    return [math.exp(level - middle) for level in levels]


def _level(logs: Mapping[str, Sequence[float]], effects: Mapping[str, float], index: int) -> float:
    """How slow one round was, by those who took part in it."""
    return statistics.median(
        own[index] - effects[name] for name, own in logs.items() if index < len(own)
    )
