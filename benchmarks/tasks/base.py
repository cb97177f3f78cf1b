"""A trained model with real data: what quality is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...]
Predict = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Task:
    """One trained model, and how good what it says is.

    Attributes:
        name: What tables call it.
        model: In eval mode.
        batches: What it is scored on.
        calibration: Other data of the same kind.
        right: From all outputs, in the order of the batches, to which answers are right.
        metric: What the share of right answers is called.
        count: How many answers there are.
        training: Pairs of inputs and labels, other than those it is scored on; empty where there
            are none.
    """

    name: str
    model: nn.Module
    batches: list[Inputs]
    calibration: list[Inputs]
    right: Callable[[torch.Tensor], torch.Tensor]
    metric: str
    count: int
    training: Iterable[Any] = ()

    @property
    def example(self) -> Inputs:
        """One sample."""
        return tuple(tensor[:1] for tensor in self.batches[0])

    def outputs(self, predict: Predict) -> torch.Tensor:
        """All outputs of ``predict``, which is called as the model is."""
        with torch.no_grad():
            return torch.cat([predict(*batch).clone() for batch in self.batches])

    def score(self, outputs: torch.Tensor) -> float:
        """Points of 100."""
        return 100.0 * float(self.right(outputs).double().mean())


def accuracy(labels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Where the largest logit is that of the label."""
    return lambda logits: logits.argmax(1) == labels


def split(x: torch.Tensor, batch: int) -> list[Inputs]:
    """Batches of a model with one input."""
    return [(part,) for part in x.split(batch)]
