"""Chooses the units to remove, by their scores, as many as settings and the hardware say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fxopt.plugin import Target, is_named
from fxopt_prune.channels import Group

Scores = npt.NDArray[np.float64]
"""The importance of each unit of a group."""

Scope = Literal["layer", "global"]

_AMPLE = 4  # steps in a layer: fewer round a share of it too coarsely


@dataclass(frozen=True)
class Amounts:
    """How much is removed of which group.

    Attributes:
        ratio: The share of units that go, unless ``layers`` says something else.
        layers: Ratios by patterns of names of weights; the first that matches counts.
        multiples: Of which the channels of a layer should be, the best first.
    """

    ratio: float
    layers: Mapping[str, float]
    multiples: Sequence[int]

    def ratio_of(self, group: Group) -> float:
        """The share of a group's units that go."""
        names = layer_names(group)
        for pattern, ratio in self.layers.items():
            if any(is_named(name, [pattern]) for name in names):
                return ratio
        return self.ratio

    def kept(self, group: Group, wanted: float) -> int:
        """How many units stay when so many should: a multiple that suits the hardware, or one."""
        step = self._step(group)
        rounded = step * max(1, math.floor(wanted / step + 0.5))
        return min(len(group), rounded)

    def _step(self, group: Group) -> int:
        """How many units to go by: the best multiple of which there are enough to choose from.

        Where even the last one is too large, it is one.
        """
        steps = [_units(group, multiple) for multiple in self.multiples]
        ample = (step for step in steps if len(group) >= _AMPLE * step)
        last = steps[-1] if len(group) >= 2 * steps[-1] else 1
        return next(ample, last)


def _units(group: Group, multiple: int) -> int:
    """Units whose channels are such a multiple, on each side."""
    each = [side.positions.shape[1] for side in group.sides]
    return max(multiple // math.gcd(multiple, size) for size in each)


def layer_names(group: Group) -> set[str]:
    """The layers whose channels are concerned, and their weights."""
    weights = {group.name, *(side.name for side in group.sides)}
    return weights | {name.rpartition(".")[0] for name in weights}


def preferred(target: Target) -> tuple[int, ...]:
    """Channels that kernels of the target take at a time, the best number first."""
    return (16, 8) if "avx512f" in target.features else (8,)


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
