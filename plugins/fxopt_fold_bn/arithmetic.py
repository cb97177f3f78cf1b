"""The arithmetic of folding, in float64 whatever the weights are in.

With scale = gamma / sqrt(variance + eps) and shift = beta - mean * scale, a batch norm yields
scale * x + shift, per channel (Jacob et al. 2018, equation 14, and its counterpart for a batch
norm that comes first).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxopt_fold_bn.layers import TRANSPOSED


@dataclass(frozen=True)
class State:
    """Weight and bias of a folded layer, in the dtype of the layer's weight."""

    weight: Tensor
    bias: Tensor

    @property
    def finite(self) -> bool:
        """Whether folding has overflowed nowhere."""
        return bool(self.weight.isfinite().all()) and bool(self.bias.isfinite().all())


@torch.no_grad()
def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in inference, as float64 of shape (channels,)."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mean) if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(mean) if norm.bias is None else norm.bias.double()
    scale = gamma / torch.sqrt(variance + norm.eps)
    return scale, beta - mean * scale


@torch.no_grad()
def with_norm_after(layer: Any, norm: nn.Module) -> State:
    """The layer that computes ``norm(layer(x))``."""
    scale, shift = affine(norm)
    weight = _by_group(layer)  # (groups, out, in, taps)
    grouped = scale.view(weight.shape[0], -1, 1, 1)
    bias = 0.0 if layer.bias is None else layer.bias.double() * scale
    return _state(layer, weight * grouped, bias + shift)


@torch.no_grad()
def with_norm_before(layer: Any, norm: nn.Module) -> State:
    """The layer that computes ``layer(norm(x))``, where each output sees all of its taps."""
    scale, shift = affine(norm)
    weight = _by_group(layer)
    groups = weight.shape[0]
    moved = (weight * shift.view(groups, 1, -1, 1)).sum(dim=(2, 3)).flatten()
    bias = 0.0 if layer.bias is None else layer.bias.double()
    return _state(layer, weight * scale.view(groups, 1, -1, 1), bias + moved)


def set_state(layer: Any, state: State) -> None:
    """Gives ``layer`` new parameters; others that were tied to its old ones keep those."""
    trainable = bool(layer.weight.requires_grad)
    layer.weight = nn.Parameter(state.weight, requires_grad=trainable)
    layer.bias = nn.Parameter(state.bias, requires_grad=trainable)


def _by_group(layer: Any) -> Tensor:
    """The weight as (groups, outputs per group, inputs per group, taps), in float64."""
    weight: Tensor = layer.weight.double()
    groups = getattr(layer, "groups", 1)
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    # a transposed convolution stores (inputs, outputs per group, ...)
    return grouped.transpose(1, 2) if isinstance(layer, TRANSPOSED) else grouped


def _state(layer: Any, weight: Tensor, bias: Tensor) -> State:
    stored = weight.transpose(1, 2) if isinstance(layer, TRANSPOSED) else weight
    old = layer.weight
    return State(stored.reshape(old.shape).to(old.dtype), bias.to(old.dtype))
