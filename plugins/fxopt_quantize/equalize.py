"""Equalization: factors move between the channels of two layers, so that they round better.

Cross-layer equalization of Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction" (2019), section 4.1. Where all that lies between two layers commutes with a
positive factor per channel, the outputs of the first may be divided by any such factors if the
weights of the second are multiplied by them.

The paper balances the weights of both. Where weights have a scale per output channel, those of
the first need no balance, and what matters is the range that activations show in between:

- what a depthwise convolution takes gets the same range in all channels, since its filters have
  scales of their own;
- otherwise ranges of activations are balanced with the weights behind them, as by Xiao et al.
  ("SmoothQuant", 2023), equation 4, at a strength of one half.

By either, channels are stretched 32-fold at most, relative to the others. The paper has no such
bound when it balances weights, and absorbs the high biases that arise into the next layer instead,
which changes the model where data are not as expected.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx, nn

from fxopt.plugin import Edit, Program
from fxopt_quantize.channels import (
    bounded_stretch,
    divide_outputs,
    input_ranges,
    multiply_inputs,
    output_ranges,
)
from fxopt_quantize.histogram import ChannelRange
from fxopt_quantize.placement import is_depthwise
from fxopt_quantize.smooth import parameter_uses

Equalization = Literal["off", "weights", "activations"]

aten = torch.ops.aten

_SWEEPS = 20
_SETTLED = 1e-3  # the largest change of a factor in a sweep that is still worth another one

_ELEMENTWISE: frozenset[Any] = frozenset(
    {
        aten.relu.default,
        aten.leaky_relu.default,
        nn.ReLU,
        nn.LeakyReLU,
        nn.PReLU,
        nn.Identity,
        nn.Dropout,
    }
)
_SPATIAL: frozenset[Any] = frozenset(
    {
        aten.max_pool2d.default,
        aten.avg_pool2d.default,
        aten.adaptive_avg_pool2d.default,
        nn.MaxPool1d,
        nn.MaxPool2d,
        nn.MaxPool3d,
        nn.AvgPool1d,
        nn.AvgPool2d,
        nn.AvgPool3d,
        nn.AdaptiveAvgPool1d,
        nn.AdaptiveAvgPool2d,
        nn.AdaptiveAvgPool3d,
        nn.Dropout2d,
    }
)


@dataclass
class Link:
    """Two or more layers that factors can move between.

    Attributes:
        first: The node of the layer whose outputs are divided.
        seconds: The nodes of the layers whose weights are multiplied.
        clips: The nodes between them that cut values off, each with its bound.
        linear: Whether the layers are linear, and channels the last dimension of values.
        seen: The range of each channel in front of the seconds.
        divided: What balancing the weights has divided each channel by so far.
    """

    first: fx.Node
    seconds: tuple[fx.Node, ...]
    clips: dict[fx.Node, float]
    linear: bool
    seen: ChannelRange = field(default_factory=ChannelRange)
    divided: torch.Tensor = field(default_factory=lambda: torch.ones(()))


class Equalizer:
    """Finds what can be equalized, watches the activations there, and moves the factors.

    Args:
        program: Whose weights and clips :meth:`equalize` changes.
        layers: The nodes that are to compute in int8.
    """

    def __init__(self, program: Program, layers: Collection[fx.Node]) -> None:
        self._program = program
        self.links = list(find_links(program, layers))
        self._watched = {s.all_input_nodes[0]: link for link in self.links for s in link.seconds}

    def __call__(self, node: fx.Node, inputs: Sequence[Any], value: Any) -> None:
        """Takes in one batch."""
        if node in self._watched:
            link = self._watched[node]
            link.seen.update(value.reshape(-1, value.shape[-1]) if link.linear else value)

    def equalize(self, by: Literal["weights", "activations"]) -> None:
        """Changes the program; what it computes stays the same but for rounding.

        Args:
            by: Whether to balance the weights of both layers, as the paper does, which needs no
                data, or the activations that were watched.
        """
        with torch.no_grad():
            links = self._clipped_by_channel()
            if by == "weights":
                self._balance(links)
            else:
                for link, bounds in links:
                    self._move(link, bounds, self._by_activations(link))

    def _clipped_by_channel(self) -> list[tuple[Link, list[torch.Tensor]]]:
        """Gives each clip a bound per channel; the links of which all have, with the bounds."""
        found = []
        with self._program.edit() as edit:
            for link in self.links:
                if edit.exhausted:
                    continue
                made = [_by_channel(edit, link, clip) for clip in link.clips]
                bounds = [bound for bound in made if bound is not None]
                if len(bounds) == len(made):
                    found.append((link, bounds))
        return found

    def _balance(self, links: Sequence[tuple[Link, list[torch.Tensor]]]) -> None:
        """What one link moves, the next in a row sees: so all of them until they settle."""
        for _ in range(_SWEEPS):
            largest = 0.0
            for link, bounds in links:
                factors = self._by_weights(link)
                self._move(link, bounds, factors)
                largest = max(largest, float((factors - 1).abs().max()))
            if largest < _SETTLED:
                return

    def _move(self, link: Link, bounds: Sequence[torch.Tensor], factors: torch.Tensor) -> None:
        divide_outputs(self._program.leaf(link.first), factors)
        for second in link.seconds:
            multiply_inputs(self._program.leaf(second), factors)
        for bound in bounds:
            bound.div_(factors.view_as(bound))

    def _by_weights(self, link: Link) -> torch.Tensor:
        """The paper's equation 11, with bounds; 1 where a channel is all zero on either side."""
        first = output_ranges(self._program.leaf(link.first))
        wanted = link.divided * _usable((first / self._columns(link)).sqrt())
        bounded = bounded_stretch(wanted, wanted.median())
        factors, link.divided = bounded / link.divided, bounded
        return factors

    def _by_activations(self, link: Link) -> torch.Tensor:
        columns = self._columns(link)
        seen = torch.maximum(-link.seen.minimum, link.seen.maximum).to(columns.dtype)
        depthwise = all(is_depthwise(self._program, second) for second in link.seconds)
        factors = _usable(seen if depthwise else (seen / columns).sqrt(), otherwise=0.0)
        factors = bounded_stretch(factors / factors.max(), torch.ones_like(factors))
        return torch.where(seen > 0, factors, torch.ones_like(factors))  # also if all are zero

    def _columns(self, link: Link) -> torch.Tensor:
        ranges = [input_ranges(self._program.leaf(second)) for second in link.seconds]
        return torch.stack(ranges).amax(0)


def find_links(program: Program, layers: Collection[fx.Node]) -> Iterator[Link]:
    """All layers of a program that factors can move between.

    Args:
        program: It is not changed.
        layers: The nodes that are considered.
    """
    used = parameter_uses(program)
    own = {n for n in layers if all(used[tensor] == 1 for tensor in program.leaf(n).parameters())}
    for first in program.nodes:
        if first in own:
            linear = isinstance(program.leaf(first), nn.Linear)
            clips: dict[fx.Node, float] = {}
            seconds = _reach(program, first, linear, clips)
            if (
                seconds
                and own.issuperset(seconds)
                and all(_fits(program, first, s) for s in seconds)
            ):
                yield Link(first, tuple(seconds), clips, linear)


def bound_of(program: Program, node: fx.Node) -> tuple[fx.Node, float] | None:
    """What a node with a bound per channel cuts off, and the lowest bound; None for another one."""
    if node.target is not aten.minimum.default:
        return None
    value, bounds = node.args
    if not (isinstance(value, fx.Node) and isinstance(bounds, fx.Node) and bounds.op == "get_attr"):
        return None
    return value, float(program.tensor(bounds).min())


def _usable(factors: torch.Tensor, otherwise: float = 1.0) -> torch.Tensor:
    fine = torch.isfinite(factors) & (factors > torch.finfo(factors.dtype).tiny)
    return torch.where(fine, factors, otherwise)


def _by_channel(edit: Edit, link: Link, clip: fx.Node) -> torch.Tensor | None:
    """Replaces a clip by one with a bound per channel; None where no rewrite is left for it."""
    value = clip.meta["val"]
    shape = [value.shape[-1]] if link.linear else [1, value.shape[1], *[1] * (value.dim() - 2)]
    bounds = torch.full(shape, link.clips[clip], dtype=value.dtype, device=value.device)
    positive = edit.call(aten.relu.default, clip.args[0], before=clip)
    constant = edit.constant(bounds, before=clip, name="channel_bounds")
    new = edit.replace(clip, aten.minimum.default, positive, constant)
    return None if new is clip else bounds


def _reach(
    program: Program, node: fx.Node, linear: bool, clips: dict[fx.Node, float]
) -> list[fx.Node]:
    """What takes the value of ``node``, be it behind operations that commute with factors."""
    found: list[fx.Node] = []
    for user in node.users:
        bound = _bound(program, user)
        if bound is not None:
            clips[user] = bound
        if bound is None and not _commutes(program, user, linear):
            found.append(user)
        else:
            found += _reach(program, user, linear, clips)
    return found


def _fits(program: Program, first: fx.Node, second: fx.Node) -> bool:
    """Whether the outputs of one are, channel by channel, the inputs of the other."""
    one: Any = program.leaf(first)
    other: Any = program.leaf(second)
    if isinstance(one, nn.Linear) or isinstance(other, nn.Linear):
        return isinstance(one, nn.Linear) and isinstance(other, nn.Linear)
    # without a batch dimension, channels come first
    return bool(one.weight.dim() == other.weight.dim() == first.meta["val"].dim())


def _commutes(program: Program, node: fx.Node, linear: bool) -> bool:
    kind = type(program.leaf(node)) if node.op == "call_module" else node.target
    return kind in _ELEMENTWISE or (kind in _SPATIAL and not linear)


def _bound(program: Program, node: fx.Node) -> float | None:
    """Where an activation that is zero below zero cuts off above; None for any other node."""
    if node.op == "call_module":
        leaf = program.leaf(node)
        return float(leaf.max_val) if isinstance(leaf, nn.Hardtanh) and leaf.min_val == 0 else None
    if node.target is aten.relu6.default:
        return 6.0
    if node.target in (aten.hardtanh.default, aten.clamp.default) and len(node.args) == 3:
        low, high = node.args[1:]
        return float(high) if low == 0 and isinstance(high, (int, float)) else None
    return None
