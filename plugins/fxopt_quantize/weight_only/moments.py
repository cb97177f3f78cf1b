"""Second moments of what linear layers in float take, for rounding that looks at the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_quantize.histogram import NotFiniteError
from fxopt_quantize.means import RunningMean
from fxopt_quantize.moments import linear_columns, second_moments


class LinearMoments:
    """Watches a program, and gathers the mean of x x' over the inputs x of its linear layers.

    A matrix that an embedding shares is left out: of its rows whichever is looked up counts by
    itself.

    Args:
        program: Whose layers they are.
        nodes: Calls of linear layers and embeddings.
    """

    def __init__(self, program: Program, nodes: Iterable[fx.Node]) -> None:
        layers = {node: program.leaf(node) for node in nodes}
        tables = {leaf.weight for leaf in layers.values() if isinstance(leaf, nn.Embedding)}
        linear = {node: leaf for node, leaf in layers.items() if isinstance(leaf, nn.Linear)}
        self._weights = {n: leaf.weight for n, leaf in linear.items() if leaf.weight not in tables}
        self._moments = {weight: RunningMean() for weight in self._weights.values()}

    def __call__(self, node: fx.Node, inputs: Sequence[Any], value: Any) -> None:
        """Takes in one batch; raises NotFiniteError where a layer takes NaN or infinity."""
        if node in self._weights:
            if not bool(torch.isfinite(inputs[0]).all()):
                raise NotFiniteError(node.all_input_nodes[0])
            columns = linear_columns(inputs[0])
            mean = second_moments(columns)
            self._moments[self._weights[node]].update(mean, columns.shape[1])

    def found(self) -> dict[torch.Tensor, torch.Tensor]:
        """The moments by the weights, as far as some inputs were seen."""
        return {weight: mean.value for weight, mean in self._moments.items() if mean.count}
