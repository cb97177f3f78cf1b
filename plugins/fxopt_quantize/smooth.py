"""Smoothing: outliers in some channels move from activations, which share a scale, to weights.

SmoothQuant (Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for
Large Language Models", 2023): what a layer norm yields is divided by a factor per channel, which
costs nothing, and the columns of the linear layers behind it are multiplied by the same factors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_quantize.histogram import ChannelRange


@dataclass
class Smoothing:
    """A layer norm and what takes its output.

    Attributes:
        norm: The node of the layer norm.
        layers: The nodes of the linear layers.
        seen: The range of each channel between them.
    """

    norm: fx.Node
    layers: tuple[fx.Node, ...]
    seen: ChannelRange = field(default_factory=ChannelRange)


class Smoother:
    """Watches the outputs of layer norms, then moves their outliers to the layers behind.

    Args:
        program: Whose weights are changed by :meth:`smooth`.
        layers: The nodes that are to compute in int8.
    """

    def __init__(self, program: Program, layers: Collection[fx.Node]) -> None:
        self._program = program
        self._found = {each.norm: each for each in _smoothings(program, set(layers))}

    def __len__(self) -> int:
        return len(self._found)

    def __call__(self, node: fx.Node, inputs: Sequence[Any], value: Any) -> None:
        """Takes in one batch."""
        if node in self._found:
            self._found[node].seen.update(value.movedim(-1, 1))

    def smooth(self, strength: float) -> None:
        """Changes the weights; what the program computes stays the same but for rounding.

        Args:
            strength: Between 0 and 1: how much of the range of a channel goes to the weights.
        """
        for each in self._found.values():
            norm: Any = self._program.leaf(each.norm)
            layers: list[Any] = [self._program.leaf(node) for node in each.layers]
            with torch.no_grad():
                factors = _factors(each.seen, [layer.weight for layer in layers], strength)
                _divide(norm, factors)
                for layer in layers:
                    layer.weight.mul_(factors)


def _factors(seen: ChannelRange, weights: Sequence[torch.Tensor], strength: float) -> torch.Tensor:
    """The paper's equation 4; 1 where a channel or its weights are all zero."""
    dtype = weights[0].dtype
    activations = torch.maximum(-seen.minimum, seen.maximum).to(dtype)
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    factors = activations**strength / columns ** (1 - strength)
    usable = torch.isfinite(factors) & (factors > torch.finfo(dtype).tiny)
    return torch.where(usable, factors, torch.ones_like(factors))


def _divide(norm: Any, factors: torch.Tensor) -> None:
    norm.weight.div_(factors)
    if norm.bias is not None:
        norm.bias.div_(factors)


def _smoothings(program: Program, layers: set[fx.Node]) -> Iterator[Smoothing]:
    used = parameter_uses(program)
    for node in program.nodes:
        users = tuple(node.users)
        if node.op != "call_module" or not users or not layers.issuperset(users):
            continue
        leaves = [program.leaf(each) for each in (node, *users)]
        own = all(used[tensor] == 1 for leaf in leaves for tensor in leaf.parameters())
        if own and _is_norm(leaves[0]) and all(isinstance(leaf, nn.Linear) for leaf in leaves[1:]):
            yield Smoothing(node, users)


def _is_norm(leaf: nn.Module) -> bool:
    """Whether a module ends in a factor per channel of the last dimension."""
    single = isinstance(leaf, nn.LayerNorm) and len(leaf.normalized_shape) == 1
    return single and leaf.weight is not None


def parameter_uses(program: Program) -> Mapping[torch.Tensor, int]:
    """How many nodes use each parameter."""
    found: Counter[torch.Tensor] = Counter()
    for node in program.nodes:
        if node.op == "call_module":
            found.update(program.leaf(node).parameters())
        elif node.op == "get_attr":
            found[program.tensor(node)] += 1
    return found
