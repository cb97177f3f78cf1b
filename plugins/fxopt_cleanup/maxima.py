"""Activations in front of a maximum over positions: computed for what the maximum needs alone.

A rising function keeps the order of its arguments, so that its largest value is that of the
largest argument. GELU, SiLU, Mish and hardswish fall and then rise, once: their largest value is
that of the largest argument or that of the smallest one.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxopt.plugin import Edit, Program
from fxopt_cleanup.memory import argument, operand

aten = torch.ops.aten

# Those that cost about as much as a comparison, and are fused to the layer in front of them, such
# as ReLU, stay where they are. Softplus is not among them: at its threshold it falls.
_RISING = (
    aten.sigmoid.default, aten.tanh.default, aten.log_sigmoid.default, aten.elu.default,
    aten.selu.default, aten.celu.default,
)  # fmt: skip
_FALLING_THEN_RISING = (
    aten.gelu.default, aten.silu.default, aten.mish.default, aten.hardswish.default,
)  # fmt: skip

# Over fewer positions two searches cost as much as the activations that they save.
_FEWEST = 8


@dataclass(frozen=True)
class _Maximum:
    """The largest values along dimensions.

    Attributes:
        source: What they are taken of.
        dims: The dimensions, not negative.
        keepdim: Whether they stay, with size 1.
    """

    source: fx.Node
    dims: list[int]
    keepdim: bool

    def positions(self) -> int:
        """Over how many values each is taken; 0 where that is known at run time only."""
        sizes = [self.source.meta["val"].shape[dim] for dim in self.dims]
        return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else 0


def activate_maxima(program: Program, edit: Edit) -> Counter[str]:
    """Moves costly activations behind the maximum that alone takes them."""
    counts: Counter[str] = Counter()
    for node in program.nodes:
        if edit.exhausted:
            break
        maximum = _maximum(node)
        if maximum is not None and _is_costly(maximum.source) and maximum.positions() >= _FEWEST:
            _move(edit, node, maximum)
            counts["maxima"] += 1
    return counts


def _is_costly(node: fx.Node) -> bool:
    known = node.target in _RISING or node.target in _FALLING_THEN_RISING
    return known and len(node.users) == 1 and _rises(node)


def _rises(node: fx.Node) -> bool:
    """Whether the parameters of an activation are those with which it rises."""
    settings = (*node.args[1:], *node.kwargs.values())
    return all(isinstance(value, str) or _is_positive(value) for value in settings)


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _move(edit: Edit, node: fx.Node, maximum: _Maximum) -> None:
    function: Any = maximum.source.target
    source, *settings = maximum.source.args
    kwargs = maximum.source.kwargs

    def found(reduction: Any) -> fx.Node:
        return edit.call(reduction, source, maximum.dims, maximum.keepdim, before=node)

    highest = found(aten.amax.default)
    if function in _RISING:
        edit.replace(node, function, highest, *settings, **kwargs)
        return
    ends = (highest, found(aten.amin.default))
    values = (edit.call(function, end, *settings, before=node, **kwargs) for end in ends)
    edit.replace(node, aten.maximum.default, *values)


def _maximum(node: fx.Node) -> _Maximum | None:
    """What a node takes the maximum of, if that is what it does."""
    if node.target is aten.amax.default:
        return _over(operand(node), argument(node, "dim"), argument(node, "keepdim"))
    pair = operand(node)
    if node.target is not operator.getitem or node.args[1] != 0 or pair is None:
        return None
    if len(pair.users) > 1:
        return None  # where it is, is asked for as well
    if pair.target is aten.max.dim:
        return _over(operand(pair), [argument(pair, "dim")], argument(pair, "keepdim"))
    return _pooled(pair)


_POOLS: dict[Any, int] = {
    aten.adaptive_max_pool1d.default: 1,
    aten.adaptive_max_pool2d.default: 2,
    aten.adaptive_max_pool3d.default: 3,
}


def _pooled(pair: fx.Node) -> _Maximum | None:
    rank = _POOLS.get(pair.target)
    if rank is None or any(size != 1 for size in argument(pair, "output_size")):
        return None
    return _over(operand(pair), list(range(-rank, 0)), True)


def _over(source: fx.Node | None, dims: list[int], keepdim: bool) -> _Maximum | None:
    value = None if source is None else source.meta.get("val")
    if source is None or not isinstance(value, torch.Tensor) or value.dim() == 0:
        return None
    chosen = dims or range(value.dim())
    return _Maximum(source, sorted(dim % value.dim() for dim in chosen), keepdim)
