"""Chooses the units to remove, by their scores, as many as settings and the hardware say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fxopt.plugin import Target
from fxopt_prune.channels import Group
from fxopt_prune.ratios import own_ratio
from fxopt_prune.work import Scores, Spending, Works

Scope = Literal["layer", "global", "work"]

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

    def own_ratio(self, group: Group) -> float | None:
        """The share of a group's units that go by ``layers``; None where that does not name it."""
        return own_ratio(layer_names(group), self.layers)

    def kept(self, group: Group, wanted: float) -> int:
        """How many units stay when so many should: all, or a multiple that suits the hardware."""
        if wanted >= len(group):
            return len(group)
        step = self.step(group)
        rounded = step * max(1, math.floor(wanted / step + 0.5))
        return min(len(group), rounded)

    def step(self, group: Group) -> int:
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
    """The layers whose own channels are concerned, those that they yield, and their weights."""
    weights = {group.name, *(side.name for side in group.sides if not side.takes)}
    return weights | {name.rpartition(".")[0] for name in weights}


def preferred(target: Target) -> tuple[int, ...]:
    """Channels that kernels of the target take at a time, the best number first."""
    return (16, 8) if "avx512f" in target.features else (8,)


def choose(
    groups: Sequence[Group],
    scores: Sequence[Scores],
    amounts: Amounts,
    scope: Scope,
    works: Works,
) -> dict[int, list[int]]:
    """The units to remove, by the number of their group.

    Args:
        groups: All groups that may lose units.
        scores: The importance of their units.
        amounts: How much goes.
        scope: Whether each group loses its share, or all together, where scores are compared
            relative to the mean of their group; or those units go that matter least for their
            multiply-adds. Groups that ``amounts.layers`` names lose their own share in any case.
        works: The multiply-adds of weights, for ``work``.

    Returns:
        Classes of units; of each group at least one stays.
    """
    wanted = _wanted(groups, scores, amounts, scope, works)
    removed = {}
    for i, (group, score) in enumerate(zip(groups, scores, strict=True)):
        count = len(group) - amounts.kept(group, wanted[i])
        lowest = np.argsort(score, kind="stable")[:count]  # of equal ones, those that come first
        removed[i] = [int(group.units[unit]) for unit in lowest]
    return removed


def _wanted(
    groups: Sequence[Group],
    scores: Sequence[Scores],
    amounts: Amounts,
    scope: Scope,
    works: Works,
) -> dict[int, float]:
    """How many units of each group should stay, by its number."""
    ratios = [amounts.own_ratio(group) for group in groups]
    pool = [i for i, ratio in enumerate(ratios) if ratio is None]
    wanted = {
        i: len(group) * (1 - (amounts.ratio if ratio is None else ratio))
        for i, (group, ratio) in enumerate(zip(groups, ratios, strict=True))
    }
    if scope == "global":
        together = _kept_together([scores[i] for i in pool], amounts.ratio)
        wanted |= dict(zip(pool, together, strict=True))
    if scope == "work":
        spending = Spending(groups, scores, [amounts.step(group) for group in groups], works)
        for i in set(wanted) - set(pool):
            spending.keep(i, amounts.kept(groups[i], wanted[i]))
        spending.spend(pool, amounts.ratio)
        wanted |= dict(enumerate(spending.kept))
    return wanted


def _kept_together(scores: Sequence[Scores], ratio: float) -> list[float]:
    """How many units of each group stay where the given share of all goes."""
    relative = [score / max(float(score.mean()), 1e-30) for score in scores]
    order = np.argsort(np.concatenate([np.zeros(0), *relative]), kind="stable")
    owners = [i for i, score in enumerate(scores) for _ in score]
    kept = Counter(owners[unit] for unit in order[round(ratio * len(order)) :])
    return [kept[i] for i in range(len(scores))]
