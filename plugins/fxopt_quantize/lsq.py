"""Rounding that gradients pass through, with steps that are learned.

Esser et al., "Learned Step Size Quantization", 2020: the gradient goes straight through the
rounding where nothing is cut off, and that of the step is scaled so that steps and weights change
at the same pace.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def learned_rounding(
    x: torch.Tensor, step: torch.Tensor, zero_point: int, low: int, high: int, groups: int
) -> torch.Tensor:
    """Rounds to multiples of ``step``, of which ``low`` to ``high`` remain.

    Args:
        x: Any floats.
        step: Positive; broadcasts against ``x``.
        zero_point: The integer that stands for zero.
        low: The smallest integer.
        high: The largest integer.
        groups: By how many the number of values is divided for the scale of the step's gradient:
            samples of an activation, channels of a weight.
    """
    pace = 1 / math.sqrt(max(1, x.numel() // groups) * high)
    paced = step.detach() + pace * (step - step.detach())  # the same value, to the last bit
    integers = (x * paced.reciprocal() + zero_point).clamp(low, high)
    rounded = integers + (integers.round() - integers).detach()
    return (rounded - zero_point) * paced


class LearnedWeight(nn.Module):
    """Weights in training: floats that are rounded on each use, by steps that are learned.

    Args:
        weight: In float.
        step: Of each channel; broadcasts against the weights.
        limit: The largest integer, and the negative of the smallest.
    """

    def __init__(self, weight: torch.Tensor, step: torch.Tensor, limit: int) -> None:
        super().__init__()
        self.master = nn.Parameter(weight.detach().clone())
        self.step = nn.Parameter(step.detach().clone())
        self.limit = limit

    @torch.no_grad()
    def begin_at(self, values: torch.Tensor) -> None:
        """Moves the weights that are rounded to other integers than these onto them.

        Args:
            values: Integers within the limit, in the shape of the weights.
        """
        chosen = values * self.step
        self.master.copy_(torch.where(self.integers() == values, self.master, chosen))

    def forward(self) -> torch.Tensor:
        channels = self.step.numel()
        return learned_rounding(self.master, self.step, 0, -self.limit, self.limit, channels)

    @torch.no_grad()
    def integers(self) -> torch.Tensor:
        """What the weights are rounded to, as int8."""
        rounded = torch.round(self.master * self.step.reciprocal()).clamp(-self.limit, self.limit)
        return rounded.to(torch.int8)
