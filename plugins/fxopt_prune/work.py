"""How many units of each group stay, so that least is lost for the multiply-adds that go.

Each step takes a few units of one group, where the share of what the layers behind yield that is
lost is smallest for the multiply-adds that are saved: a greedy knapsack, as in Yang et al.,
"NetAdapt" (2018), but by the scores of units in place of trainings. What a step saves depends on
what its neighbours have lost, as a convolution's work is the product of its inputs and outputs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fxopt.plugin import Program, multiply_adds
from fxopt_prune.channels import Group

Scores = npt.NDArray[np.float64]
"""The importance of each unit of a group."""

Works = Mapping[int, float]
"""The multiply-adds of weights, by their identity."""

_Dim = tuple[int, int]  # a weight, by its identity, and a dimension of it


def works_of(program: Program) -> Works:
    """The multiply-adds that the weights of layers take part in, at the sizes of the examples.

    Args:
        program: It is not changed.
    """
    works = Counter[int]()
    for node, count in multiply_adds(program).items():
        if node.op == "call_module" and count:
            weights = [w for w in program.leaf(node).parameters() if w.dim() > 1]
            every = sum(weight.numel() for weight in weights)
            works.update({id(weight): count * weight.numel() // every for weight in weights})
    return works


class Spending:
    """Widths that shrink, and the multiply-adds that are left.

    Args:
        groups: All that may lose units.
        scores: The importance of their units; squares add up.
        steps: How many units of each group go at a time.
        works: As :func:`works_of` gives them.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        scores: Sequence[Scores],
        steps: Sequence[int],
        works: Works,
    ) -> None:
        self._works = works
        self._total = sum(works.values())
        self._steps = steps
        self.kept = [len(group) for group in groups]
        self._lost = [_losses(*each) for each in zip(groups, scores, strict=True)]
        self._units = [_positions(group, works) for group in groups]
        self._weights = [{weight for weight, _ in units} for units in self._units]
        self._gone = {dim: 0 for units in self._units for dim in units}
        self._sizes = _sizes(groups, works)

    @property
    def work(self) -> float:
        """The multiply-adds that are left."""
        return sum(self._work_of(weight) for weight in self._works)

    def keep(self, index: int, count: int) -> None:
        """Leaves so many units of a group."""
        for dim, positions in self._units[index].items():
            self._gone[dim] += positions * (self.kept[index] - count)
        self.kept[index] = count

    def spend(self, pool: Sequence[int], share: float) -> None:
        """Takes units of some groups, until a share of all multiply-adds is gone.

        Where that cannot be, as much as can.
        """
        limit = (1 - share) * self._total
        prices = {index: self._price(index) for index in pool}
        while prices and self.work > limit:
            best = min(prices, key=lambda index: prices[index])
            if math.isinf(prices[best]):
                break
            self.keep(best, self._next(best))
            for index in pool:
                if self._weights[best] & self._weights[index]:
                    prices[index] = self._price(index)
        self._give_back(pool, limit)

    def _give_back(self, pool: Sequence[int], limit: float) -> None:
        """Returns the last steps of groups, as long as the multiply-adds allow it."""
        before: list[int] = []
        while before != self.kept:
            before = list(self.kept)
            for index in sorted(pool, key=self._regained, reverse=True):
                self._step_back(index, limit)

    def _step_back(self, index: int, limit: float) -> None:
        """Returns a group's last step, if the multiply-adds allow it."""
        kept = self.kept[index]
        self.keep(index, min(self._size(index), kept + self._steps[index]))
        if self.work > limit:
            self.keep(index, kept)

    def _next(self, index: int) -> int:
        """How many units a group has after its next step; 0 after its last."""
        step = self._steps[index]
        return (self.kept[index] - 1) // step * step

    def _price(self, index: int) -> float:
        """What is lost by a group's next step, for each multiply-add that it saves."""
        count = self._next(index)
        if not count:
            return math.inf
        before, kept = self._around(index), self.kept[index]
        self.keep(index, count)
        saved = before - self._around(index)
        self.keep(index, kept)
        return self._lost_between(index, count, kept) / saved if saved > 0 else math.inf

    def _regained(self, index: int) -> float:
        """What a step back brings."""
        kept = self.kept[index]
        return self._lost_between(index, kept, min(self._size(index), kept + self._steps[index]))

    def _lost_between(self, index: int, count: int, more: int) -> float:
        """How much more is lost with ``count`` units than with ``more``."""
        size = self._size(index)
        return float(self._lost[index][size - count] - self._lost[index][size - more])

    def _size(self, index: int) -> int:
        return len(self._lost[index])

    def _around(self, index: int) -> float:
        """The multiply-adds of all weights that lose something with a group."""
        return sum(self._work_of(weight) for weight in self._weights[index])

    def _work_of(self, weight: int) -> float:
        sizes = self._sizes.get(weight, {})
        left = (1 - self._gone[weight, dim] / size for dim, size in sizes.items())
        return self._works[weight] * math.prod(left)


def _losses(group: Group, score: Scores) -> Scores:
    """What is lost with the least 0, 1, 2, ... units, by the layers that take them.

    By what is left of the units and of their squares, in the geometric mean: the narrower a layer
    is already, the more its next step costs.
    """
    squares = np.sort(np.square(score))
    takers = max(1, sum(side.takes and side.tensor.dim() > 1 for side in group.sides))
    left = np.cumsum(squares[::-1])[::-1] / max(float(squares.sum()), 1e-30)
    units = 1 - np.arange(len(squares)) / len(squares)
    return np.asarray(takers * (np.maximum(left * units, 1e-30) ** -0.5 - 1))


def _positions(group: Group, works: Works) -> dict[_Dim, int]:
    """How many positions of each dimension of a weight go with one unit."""
    found = Counter[_Dim]()
    for side in group.sides:
        if id(side.tensor) in works:
            found[id(side.tensor), side.dim] += side.positions.shape[1]
    return dict(found)


def _sizes(groups: Sequence[Group], works: Works) -> dict[int, dict[int, int]]:
    """The sizes of the dimensions of weights that may lose something."""
    found: dict[int, dict[int, int]] = {}
    for side in (side for group in groups for side in group.sides):
        if id(side.tensor) in works:
            found.setdefault(id(side.tensor), {})[side.dim] = side.tensor.shape[side.dim]
    return found
