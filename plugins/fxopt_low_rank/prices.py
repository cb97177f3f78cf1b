"""What a layer and those in its place cost, as a setting says: arithmetic or predicted time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import fx

from fxopt.plugin import Roofline, Target, example_size
from fxopt_low_rank.ranks import Price, Thin, work

Cost = Literal["work", "latency"]


def price_of(cost: Cost, node: fx.Node, target: Target) -> Price:
    """The price of what stands in the place of a layer."""
    if cost == "work":
        return work
    before, after = (example_size(each) for each in (node.all_input_nodes[0], node))
    width = float(node.meta["val"].element_size())
    return lambda layers: _milliseconds(layers, before, after, width, Roofline.of(target))


def _milliseconds(
    layers: Sequence[Thin], before: int, after: int, width: float, roofline: Roofline
) -> float:
    """Predicted for layers that take so many values, of ``width`` bytes each, and yield so many."""
    positions = after // layers[-1].channels
    sizes = [before, *(positions * each.dense * each.channels for each in layers)]
    return sum(
        roofline.milliseconds(
            each.channels,
            positions * each.dense * each.weights / each.channels,
            width * (takes + each.weights + yields),
        )
        for each, (takes, yields) in zip(layers, pairwise(sizes), strict=True)
    )
