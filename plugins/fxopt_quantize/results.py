"""The range of what convolutions yield in float, for runtimes whose kernels would round it."""

from __future__ import annotations

import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_quantize.channels import channel_axis
from fxopt_quantize.histogram import ChannelRange, NotFiniteError
from fxopt_quantize.placement import Placement
from fxopt_quantize.rules import Role, role_of


class ResultRange:
    """The smallest and largest value of each channel, where all are finite."""

    def __init__(self) -> None:
        self._seen: ChannelRange | None = ChannelRange()

    def update(self, values: torch.Tensor) -> None:
        """Takes in one batch; nothing here has to be rounded, so what is not finite is no error."""
        try:
            if self._seen is not None:
                self._seen.update(values)
        except NotFiniteError:
            self._seen = None

    def bounds(self) -> torch.Tensor | None:
        """Two rows, the smallest and the largest values; None if they are of no use."""
        if self._seen is None or self._seen.minimum.dim() == 0:
            return None
        return torch.stack([self._seen.minimum, self._seen.maximum])


def results_of(program: Program, placement: Placement) -> dict[fx.Node, ResultRange]:
    """For each convolution in int8 whose result nothing rounds; one for all calls of a layer.

    Those without a batch are left out: the range is read as that of dimension 1.
    """
    rounded = {site.value for site in placement.sites}
    by_layer: dict[nn.Module, ResultRange] = {}
    found = {}
    for node in placement.layers:
        layer = program.leaf(node)
        if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            continue
        batched = channel_axis(layer.weight, node.meta["val"]) == 1
        if batched and not {node, _activated(program, node)} & rounded:
            found[node] = by_layer.setdefault(layer, ResultRange())
    return found


def _activated(program: Program, node: fx.Node) -> fx.Node:
    """The activation that alone takes a value, or the value itself."""
    users = list(node.users)
    alone = len(users) == 1 and role_of(program, users[0]) is Role.ACTIVATE
    return users[0] if alone else node
