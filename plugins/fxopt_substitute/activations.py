"""The activation functions that can be named, as calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """A function of one tensor.

    Attributes:
        target: The operator.
        arguments: What it is called with besides the tensor; all else is as by default.
    """

    target: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Its value."""
        value: torch.Tensor = self.target(x, **self.arguments)
        return value

    def is_called_by(self, node: fx.Node) -> bool:
        """Whether a node calls it, with these arguments and no others."""
        return node.target is self.target and self._given(node) == {
            **self._defaults,
            **self.arguments,
        }

    @property
    def _defaults(self) -> dict[str, Any]:
        return {each.name: each.default_value for each in self.target._schema.arguments[1:]}

    def _given(self, node: fx.Node) -> dict[str, Any]:
        names = [each.name for each in self.target._schema.arguments[1:]]
        return self._defaults | dict(zip(names, node.args[1:], strict=False)) | dict(node.kwargs)


ACTIVATIONS: Mapping[str, Activation] = {
    "elu": Activation(aten.elu.default),
    "gelu": Activation(aten.gelu.default),
    "gelu_tanh": Activation(aten.gelu.default, {"approximate": "tanh"}),
    "hardsigmoid": Activation(aten.hardsigmoid.default),
    "hardswish": Activation(aten.hardswish.default),
    "hardtanh": Activation(aten.hardtanh.default),
    "leaky_relu": Activation(aten.leaky_relu.default),
    "mish": Activation(aten.mish.default),
    "relu": Activation(aten.relu.default),
    "relu6": Activation(aten.relu6.default),
    "sigmoid": Activation(aten.sigmoid.default),
    "silu": Activation(aten.silu.default),
    "softplus": Activation(aten.softplus.default),
    "tanh": Activation(aten.tanh.default),
}
"""By name, each with its usual settings."""
