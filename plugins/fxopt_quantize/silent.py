"""Values that tell calibration less than they should: all zero, or always the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx

from fxopt.plugin import Program
from fxopt_quantize.calibrate import Observer, describe
from fxopt_quantize.histogram import ChannelRange, Histogram, MovingRange
from fxopt_quantize.placement import Placement
from fxopt_quantize.ranges import is_dead
from fxopt_quantize.rules import Role, role_of

DEAD = "{} was all zero in calibration, which tells no range"


def takers_of_dead(
    program: Program, placement: Placement, observers: Mapping[fx.Node, Observer]
) -> dict[fx.Node, str]:
    """The operations in int8 that take what was all zero, with that as a reason against it.

    Such a value, an optional input say, may be anything when it is used; and no operation can
    take one input in float and the others in int8.

    Args:
        program: It is not changed.
        placement: What is to compute in int8.
        observers: What has seen the values that are rounded.
    """
    found: dict[fx.Node, str] = {}
    for site in placement.sites:
        if _all_zero(observers[site.value]):
            for taker in site.takers:
                reason = DEAD.format(describe(site.value))
                found.update(dict.fromkeys(_computing(program, taker), reason))
    return found


def remarkable(observers: Mapping[fx.Node, Observer]) -> dict[str, Any]:
    """What is unusual about the values that are rounded, for the report.

    Args:
        observers: What has seen them.

    Returns:
        ``constant``: names of values that were always the same; ``dead_channels``: how many
        channels were all zero, by names of values with a scale per channel. What is empty is
        left out.
    """
    constant = [
        describe(node)
        for node, seen in observers.items()
        if isinstance(seen, Histogram) and seen.constant
    ]
    channels = {
        describe(node): seen.dead
        for node, seen in observers.items()
        if isinstance(seen, ChannelRange) and seen.dead
    }
    found: dict[str, Any] = {"constant": constant, "dead_channels": channels}
    return {name: values for name, values in found.items() if values}


def _all_zero(seen: Observer) -> bool:
    return isinstance(seen, (Histogram, MovingRange, ChannelRange)) and is_dead(seen)


def _computing(program: Program, node: fx.Node) -> Iterator[fx.Node]:
    """A node, or the operations behind it if it only moves values."""
    role = role_of(program, node)
    if role in (Role.PASS, Role.JOIN):
        for user in node.users:
            yield from _computing(program, user)
    elif role in (Role.LAYER, Role.COMBINE, Role.ATTEND):
        yield node
