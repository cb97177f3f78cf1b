"""What the sites of a placement are observed by, and the kind of grid that they get."""

from __future__ import annotations

from typing import Literal

from torch import fx

from fxopt_quantize.calibrate import Observer
from fxopt_quantize.calibrators import Calibrator, new_observer
from fxopt_quantize.histogram import ChannelRange
from fxopt_quantize.placement import Placement, Site

Activations = Literal["auto", "asymmetric", "symmetric"]
Depthwise = Literal["tensor", "channel"]


def unify(placement: Placement, activations: Activations, depthwise: Depthwise) -> None:
    """Makes sites that share a scale agree on its kind."""
    groups: dict[int, list[Site]] = {}
    for site in placement.sites:
        groups.setdefault(site.group, []).append(site)
    for sites in groups.values():
        wished = any(site.symmetric for site in sites)
        linear = all(site.linear for site in sites)
        for site in sites:
            site.linear = linear
            site.symmetric = wished if activations == "auto" else activations == "symmetric"
            site.per_channel &= depthwise == "channel" and len(sites) == 1


def observers_of(placement: Placement, calibrator: Calibrator) -> dict[fx.Node, Observer]:
    """An observer for each site; sites that share a scale share theirs."""
    by_group: dict[int, Observer] = {}
    for site in placement.sites:
        if site.group not in by_group:
            observer = ChannelRange() if site.per_channel else new_observer(calibrator)
            by_group[site.group] = observer
    return {site.value: by_group[site.group] for site in placement.sites}
