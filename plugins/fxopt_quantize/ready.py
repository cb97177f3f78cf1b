"""What is decided once the calibration data were seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxopt_quantize.modules import FakeQuantize, QuantLayer
from fxopt_quantize.placement import Placement
from fxopt_quantize.rules import operands


@dataclass(frozen=True)
class Ready:
    """What is decided once the data were seen.

    Attributes:
        refused: The layers and other operations that stay in float, with reasons.
        placement: Where values are rounded.
        roundings: What rounds them.
        layers: The counterparts of the layers in int8.
        samples: How many samples were seen.
        remarks: What is unusual about the values, for the report.
    """

    refused: Mapping[fx.Node, str]
    placement: Placement
    roundings: Mapping[fx.Node, nn.Module]
    layers: Mapping[fx.Node, QuantLayer]
    samples: int
    remarks: Mapping[str, Any]

    def inputs(self) -> Iterator[tuple[fx.Node, nn.Module]]:
        """What rounds the input of each layer, be it some operations earlier."""
        for node in self.layers:
            source = node.all_input_nodes[0]
            while source not in self.roundings and operands(source):
                source = operands(source)[0]  # rounding has moved up through what only moves values
            yield node, self.roundings[source]

    def groups(self) -> list[list[FakeQuantize]]:
        """What rounds activations, by the groups that share a scale.

        What has a scale per channel is left out: it keeps those.
        """
        groups: dict[int, list[FakeQuantize]] = {}
        for site in self.placement.sites:
            rounding = self.roundings[site.value]
            if isinstance(rounding, FakeQuantize):
                groups.setdefault(site.group, []).append(rounding)
        return list(groups.values())
