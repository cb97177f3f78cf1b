"""Smoothing: outliers in some channels move from activations, which share a scale, to weights.

SmoothQuant (Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for
Large Language Models", 2023): what linear layers take is divided by a factor per channel, and
their columns are multiplied by the same factors. Where a layer norm yields it for them alone, its
weights are divided, which costs nothing; elsewhere a product goes in front of the rounding, but
not behind a sum or a mean, which the product would keep from running in int8.

The paper has one strength for a model. Here each value can have its own: the one by which the
layers' outputs are expected to err least, if that is worth it. Rounding errors are taken to be
independent, and a twelfth of a squared step on the average.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx, nn

from fxopt.plugin import Edit, Program
from fxopt_quantize.channels import bounded_stretch
from fxopt_quantize.histogram import ChannelRange
from fxopt_quantize.means import RunningMean
from fxopt_quantize.rules import Role, operands, role_of

Strength = float | Literal["auto"]

_STRENGTHS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

# Of the squared error, what a product in front of the rounding may leave. It keeps the layer that
# yields the value from rounding it itself (with 11 products ConvNeXt takes 6 % longer). Outliers of
# a trained encoder leave 0.04 to 0.39, chance in random weights 0.33 to 0.81; with 0.5, an encoder
# of six layers has 24 products and an output error of 0.0628, with 0.3 it has 20 and 0.0624.
_WORTH_A_PRODUCT = 0.3


@dataclass
class Smoothing:
    """A value and the linear layers that take it.

    Attributes:
        value: The node that yields it.
        layers: The nodes of the linear layers.
        norm: Whether it is a layer norm that nothing else takes.
        seen: The range of each channel.
        squares: The mean square of each channel.
    """

    value: fx.Node
    layers: tuple[fx.Node, ...]
    norm: bool
    seen: ChannelRange = field(default_factory=ChannelRange)
    squares: RunningMean = field(default_factory=RunningMean)

    def update(self, value: torch.Tensor) -> None:
        """Takes in one batch, channels last."""
        rows = value.reshape(-1, value.shape[-1])
        self.seen.update(rows)
        self.squares.update(rows.float().square().mean(0), len(rows))

    @property
    def largest(self) -> torch.Tensor:
        """The largest magnitude of each channel."""
        return torch.maximum(-self.seen.minimum, self.seen.maximum)


class Smoother:
    """Watches what linear layers take, then moves its outliers to their weights.

    Args:
        program: Whose weights are changed by :meth:`smooth`.
        layers: The nodes that are to compute in int8.
    """

    def __init__(self, program: Program, layers: Collection[fx.Node]) -> None:
        self._program = program
        self._found = {each.value: each for each in _smoothings(program, set(layers))}

    def __len__(self) -> int:
        return len(self._found)

    def __call__(self, node: fx.Node, inputs: Sequence[Any], value: Any) -> None:
        """Takes in one batch."""
        if node in self._found:
            self._found[node].update(value)

    def smooth(self, strength: Strength) -> None:
        """Changes the program; what it computes stays the same but for rounding.

        Args:
            strength: Between 0 and 1, how much of the range of a channel goes to the weights; or
                ``auto``, what is best for each value.
        """
        with torch.no_grad(), self._program.edit() as edit:
            for each in self._found.values():
                weights = [self._weight(layer) for layer in each.layers]
                factors = _chosen(each, weights, strength)
                if factors is None or edit.exhausted:
                    continue
                if each.norm:
                    self._divide_norm(each, factors)
                else:
                    _divide_inputs(edit, each, factors)
                for layer, weight in zip(each.layers, weights, strict=True):
                    if each.norm or layer.args[0] is not each.value:
                        weight.mul_(factors)

    def _weight(self, layer: fx.Node) -> torch.Tensor:
        return self._program.leaf(layer).get_parameter("weight")

    def _divide_norm(self, each: Smoothing, factors: torch.Tensor) -> None:
        norm: Any = self._program.leaf(each.value)
        norm.weight.div_(factors)
        if norm.bias is not None:
            norm.bias.div_(factors)


def _divide_inputs(edit: Edit, each: Smoothing, factors: torch.Tensor) -> None:
    """Gives the layers a product; where no rewrite is left, a layer keeps what it takes."""
    first = each.layers[0]
    inverse = edit.constant(1 / factors, before=first, name="smoothing")
    divided = edit.call(torch.ops.aten.mul.Tensor, each.value, inverse, before=first)
    for layer in each.layers:
        edit.set_arguments(layer, divided, *layer.args[1:], **layer.kwargs)


def _chosen(
    each: Smoothing, weights: Sequence[torch.Tensor], strength: Strength
) -> torch.Tensor | None:
    """The factors for one value; None where it had better stay as it is."""
    largest = each.largest.to(weights[0].dtype)
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    if strength != "auto":
        return _factors(largest, columns, strength)
    options = [_factors(largest, columns, option) for option in _STRENGTHS]
    costs = [_cost(each, weights, factors) for factors in options]
    worth = 1.0 if each.norm else _WORTH_A_PRODUCT
    best = min(range(len(options)), key=costs.__getitem__)
    plain = _cost(each, weights, torch.ones_like(columns))
    return options[best] if costs[best] < worth * plain else None


def _factors(largest: torch.Tensor, columns: torch.Tensor, strength: float) -> torch.Tensor:
    """The paper's equation 4, with a bound; where a channel or its weights are zero, the usual one.

    The usual one is the median, since outliers are few, and may be as large as they are.
    """
    factors = largest**strength / columns ** (1 - strength)
    usable = torch.isfinite(factors) & (factors > torch.finfo(factors.dtype).tiny)
    if not usable.any():
        return torch.ones_like(factors)
    usual = factors[usable].median()
    return bounded_stretch(torch.where(usable, factors, usual), usual)


def _cost(each: Smoothing, weights: Sequence[torch.Tensor], factors: torch.Tensor) -> float:
    """How much outputs are expected to err, by rounding what is divided and what is multiplied."""
    step = (each.largest / factors).max()
    power = (each.squares.value / factors.square()).sum()
    total = 0.0
    for weight in weights:
        scaled = (weight * factors).abs()
        total += float(step**2 * scaled.square().sum() + scaled.amax(1).square().sum() * power)
    return total


def _smoothings(program: Program, layers: set[fx.Node]) -> Iterator[Smoothing]:
    used = parameter_uses(program)

    def fit(node: fx.Node) -> bool:
        """Whether a node is a linear layer that shares no weights."""
        return node in layers and _owns(program, node, used, nn.Linear)

    for node in program.nodes:
        takers = tuple(user for user in node.users if fit(user))
        whole = len(takers) == len(node.users) and _owns(program, node, used, nn.LayerNorm)
        norm = whole and _scales_channels(program.leaf(node))
        if takers and (norm or not _may_combine(program, node)):
            yield Smoothing(node, takers, norm)


def _may_combine(program: Program, node: fx.Node) -> bool:
    """Whether a sum, product or mean yields a value: in int8 only if it is taken as it is."""
    while (role := role_of(program, node)) in (Role.PASS, Role.ACTIVATE) and operands(node):
        node = operands(node)[0]
    return role in (Role.COMBINE, Role.JOIN)


def _owns(
    program: Program, node: fx.Node, used: Mapping[torch.Tensor, int], kind: type[nn.Module]
) -> bool:
    """Whether a node calls a module of a kind whose parameters nothing else uses."""
    leaf = program.leaf(node) if node.op == "call_module" else None
    return isinstance(leaf, kind) and all(used[tensor] == 1 for tensor in leaf.parameters())


def _scales_channels(norm: nn.Module) -> bool:
    """Whether a layer norm ends in a factor per channel of the last dimension."""
    single = isinstance(norm, nn.LayerNorm) and len(norm.normalized_shape) == 1
    return single and norm.weight is not None


def parameter_uses(program: Program) -> Mapping[torch.Tensor, int]:
    """How many nodes use each parameter."""
    found: Counter[torch.Tensor] = Counter()
    for node in program.nodes:
        if node.op == "call_module":
            found.update(program.leaf(node).parameters())
        elif node.op == "get_attr":
            found[program.tensor(node)] += 1
    return found
