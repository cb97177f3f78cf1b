"""Chooses the units to remove, by their scores, as many as settings and the hardware say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np
import numpy.typing as npt

from fxopt.plugin import Target
from fxopt_prune.channels import Group

Scores = npt.NDArray[np.float64]
"""The importance of each unit of a group."""

Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class Amounts:
    """How much is removed of which group.

    Attributes:
        ratio: The share of units that go, unless ``layers`` says something else.
        layers: Ratios by patterns of names of weights; the first that matches counts.
        round_to: Multiples of which the channels of a layer should be, where there are enough.
    """

    ratio: float
    layers: Mapping[str, float]
    round_to: int

    def ratio_of(self, group: Group) -> float:
        """The share of a group's units that go."""
        names = [group.name, *(side.name for side in group.sides)]
        for pattern, ratio in self.layers.items():
            if any(fnmatchcase(name, pattern) or _within(name, pattern) for name in names):
                return ratio
        return self.ratio

    def kept(self, group: Group, wanted: float) -> int:
        """How many units stay when so many should: a multiple that suits the hardware, or one.

        A group that is too small for multiples keeps what is wanted, but at least one unit.
        """
        step = self._step(group)
        if len(group) < 2 * step:
            step = 1
        rounded = step * max(1, math.floor(wanted / step + 0.5))
        return min(len(group), rounded)

    def _step(self, group: Group) -> int:
        """Units whose channels are a multiple of ``round_to``, on each side."""
        each = [side.positions.shape[1] for side in group.sides]
        return max(self.round_to // math.gcd(self.round_to, size) for size in each)


def _within(name: str, layer: str) -> bool:
    """Whether a weight belongs to a layer of exactly this name."""
    return name.rpartition(".")[0] == layer


def preferred(target: Target) -> int:
    """Channels that a kernel of the target takes at a time."""
    return 16 if "avx512f" in target.features else 8


def choose(
    groups: Sequence[Group], scores: Sequence[Scores], amounts: Amounts, scope: Scope
) -> dict[int, list[int]]:
    """The units to remove, by the number of their group.

    Args:
        groups: All groups that may lose units.
        scores: The importance of their units.
        amounts: How much goes.
        scope: Whether each group loses its share, or all together, where scores are compared
            relative to the mean of their group.

    Returns:
        Classes of units; of each group at least one stays.
    """
    kept = _kept_globally(groups, scores, amounts) if scope == "global" else None
    removed = {}
    for i, (group, score) in enumerate(zip(groups, scores, strict=True)):
        wanted = len(group) * (1 - amounts.ratio_of(group)) if kept is None else kept[i]
        count = len(group) - amounts.kept(group, wanted)
        lowest = np.argsort(score, kind="stable")[:count]  # of equal ones, those that come first
        removed[i] = [int(group.units[unit]) for unit in lowest]
    return removed


def _kept_globally(
    groups: Sequence[Group], scores: Sequence[Scores], amounts: Amounts
) -> list[float]:
    """How many units of each group are above what the given share of all is below."""
    relative = [score / max(float(score.mean()), 1e-30) for score in scores]
    every = np.concatenate([np.zeros(0), *relative])
    if not every.size:
        return []
    limit = np.quantile(every, amounts.ratio)
    return [float((score >= limit).sum()) for score in relative]
