"""Puts roundings of activations into a program."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn

from fxopt.plugin import Edit, Program
from fxopt_quantize.equalize import bound_of
from fxopt_quantize.modules import FakeQuantize
from fxopt_quantize.placement import Placement

_EPSILON = 1e-6  # relative; what float32 makes of a grid that ends at a bound


def round_activations(
    edit: Edit, program: Program, placement: Placement, roundings: Mapping[fx.Node, nn.Module]
) -> None:
    """Rounds each site's value for its takers; a bound that rounding keeps anyway is left out."""
    for site in placement.sites:
        rounding = roundings[site.value]
        source = _without_bound(program, site.value, rounding)
        rounded = edit.call(rounding, source, before=site.takers[0])
        for taker in site.takers:
            _swap_input(edit, taker, site.value, rounded)


def _without_bound(program: Program, node: fx.Node, rounding: nn.Module) -> fx.Node:
    """What is bounded, where rounding cuts off at least as much."""
    bound = bound_of(program, node)
    if bound is None or not isinstance(rounding, FakeQuantize):
        return node
    return bound[0] if rounding.largest <= bound[1] * (1 + _EPSILON) else node


def _swap_input(edit: Edit, user: fx.Node, old: fx.Node, new: fx.Node) -> None:
    def swap(node: fx.Node) -> fx.Node:
        return new if node is old else node

    args, kwargs = fx.map_arg((user.args, user.kwargs), swap)
    edit.set_arguments(user, *args, **kwargs)
