"""Optimizers and schedules by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fxopt.training.settings import Training


def make_optimizer(training: Training, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the settings.

    Weight decay is for weights: what has one dimension only (biases, norms, scales) is free of it.
    """
    groups = _groups(training, list(parameters))
    if not isinstance(training.optimizer, str):
        return training.optimizer(groups)
    rate = training.rate
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=training.momentum)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    optimizer: torch.optim.Optimizer = kinds[training.optimizer](groups, lr=rate)
    return optimizer


def make_schedule(training: Training, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """The schedule of the settings over so many steps."""
    if not isinstance(training.schedule, str):
        return training.schedule(optimizer, steps)
    warm = round(training.warmup * steps)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        done = min(1.0, (step - warm) / max(1, steps - warm))
        return _falling(str(training.schedule), done)

    return LambdaLR(optimizer, factor)


def _falling(name: str, done: float) -> float:
    if name == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1 - done if name == "linear" else 1.0


def _groups(training: Training, parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    if not isinstance(training.optimizer, str):  # the user's own knows what it decays
        return [{"params": parameters}]
    weights = [p for p in parameters if p.squeeze().dim() >= 2]
    others = [p for p in parameters if p.squeeze().dim() < 2]
    decays = ((weights, training.weight_decay), (others, 0.0))
    return [{"params": group, "weight_decay": decay} for group, decay in decays if group]
