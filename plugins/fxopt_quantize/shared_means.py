"""Means over what weights take: one for all weights that take the same, and not all at a time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Generic, TypeVar

from torch import fx

from fxopt_quantize.means import RunningMean

BUDGET = 1 << 30
"""Bytes of means that are gathered in one run over the data, unless a single one takes more.

Each further GiB costs a run: a decoder of a billion weights, whose means take 5 GB, six runs.
"""

W = TypeVar("W", bound=Hashable)


class SharedMeans(Generic[W]):
    """A mean for each weight; those whose layers take the same have one in common.

    Args:
        weights: What tells weights apart, by the calls of layers in the order of the graph.
        taken: What tells apart the inputs that a mean is over, by the same calls.

    Attributes:
        watched: The means by the calls whose inputs they are to be given.
        by_weight: The means by the weights.
    """

    def __init__(self, weights: Mapping[fx.Node, W], taken: Mapping[fx.Node, Hashable]) -> None:
        calls: dict[W, list[fx.Node]] = {}
        for node, weight in weights.items():
            calls.setdefault(weight, []).append(node)
        self._alike: dict[tuple[Hashable, ...], list[fx.Node]] = {}
        for nodes in calls.values():
            self._alike.setdefault(tuple(taken[node] for node in nodes), []).extend(nodes)
        self.watched: dict[fx.Node, RunningMean] = {}
        self.by_weight: dict[W, RunningMean] = {}
        for alike in self._alike.values():
            mean, first = RunningMean(), weights[alike[0]]
            self.by_weight.update((weights[node], mean) for node in alike)
            self.watched.update((node, mean) for node in calls[first])

    def parts(self, size: Callable[[fx.Node], int]) -> Iterator[tuple[str, list[fx.Node]]]:
        """Divides the calls such that the means of each part stay within the budget.

        Args:
            size: How many bytes the mean of a call takes.

        Yields:
            A text for the user that says which of several parts it is, and its calls.
        """
        parts: list[list[fx.Node]] = []
        held = 0
        for alike in self._alike.values():
            held += size(alike[0])
            if not parts or held > BUDGET:
                parts.append([])
                held = size(alike[0])
            parts[-1] += alike
        for number, part in enumerate(parts, start=1):
            yield f", part {number} of {len(parts)}" if len(parts) > 1 else "", part
