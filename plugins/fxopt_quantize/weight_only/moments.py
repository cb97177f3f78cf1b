"""Second moments of what linear layers in float take, for rounding that looks at the outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_quantize.histogram import NotFiniteError
from fxopt_quantize.moments import linear_columns, moment_bytes, second_moments
from fxopt_quantize.shared_means import SharedMeans


class LinearMoments:
    """Watches a program, and gathers the mean of x x' over the inputs x of its linear layers.

    A matrix that an embedding shares is left out: of its rows whichever is looked up counts by
    itself.

    Args:
        program: Whose layers they are.
        nodes: Calls of linear layers and embeddings, in the order of the graph.
    """

    def __init__(self, program: Program, nodes: Iterable[fx.Node]) -> None:
        self._program = program
        layers = {node: program.leaf(node) for node in nodes}
        tables = {leaf.weight for leaf in layers.values() if isinstance(leaf, nn.Embedding)}
        linear = {node: leaf for node, leaf in layers.items() if isinstance(leaf, nn.Linear)}
        self._weights = {n: leaf.weight for n, leaf in linear.items() if leaf.weight not in tables}
        taken = {node: node.all_input_nodes[0] for node in self._weights}
        self._moments = SharedMeans(self._weights, taken)

    def parts(self) -> Iterator[tuple[str, LinearMoments]]:
        """The same for some of the layers each, to be watched one after another to save memory.

        With each comes a text for the user that says which of several parts it is.
        """
        for name, nodes in self._moments.parts(self._bytes):
            yield name, LinearMoments(self._program, nodes)

    def __call__(self, node: fx.Node, inputs: Sequence[Any], value: Any) -> None:
        """Takes in one batch; raises NotFiniteError where a layer takes NaN or infinity."""
        if node in self._moments.watched:
            if not bool(torch.isfinite(inputs[0]).all()):
                raise NotFiniteError(node.all_input_nodes[0])
            columns = linear_columns(inputs[0])
            self._moments.watched[node].update(second_moments(columns), columns.shape[1])

    def found(self) -> dict[torch.Tensor, torch.Tensor]:
        """The moments by the weights, as far as some inputs were seen."""
        means = self._moments.by_weight
        return {weight: mean.value for weight, mean in means.items() if mean.count}

    def _bytes(self, node: fx.Node) -> int:
        weight = self._weights[node]
        return moment_bytes(weight.shape[1], weight.dtype)
