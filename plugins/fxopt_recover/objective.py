"""What is minimised: the distance to the original's outputs, to labels, and to hints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from fxopt.plugin import Criterion, Program
from fxopt_recover.distances import relative_square
from fxopt_recover.hints import Hints
from fxopt_recover.scores import Match, class_dimension, is_float


class Imitation:
    """The objective of a distillation.

    Args:
        teacher: The original; its weights are not changed.
        criterion: The user's loss; None without labels.
        match: ``logits`` or ``outputs``; see :class:`Distill`, like all that follow.
        temperature: Of the softmax.
        weight: Of the teacher against the labels.
        hints: Of what happens within.
        hint_weight: Of those.
    """

    def __init__(
        self,
        teacher: Program,
        criterion: Criterion | None,
        *,
        match: Match,
        temperature: float,
        weight: float,
        hints: Hints,
        hint_weight: float,
    ) -> None:
        self._teacher, self._criterion = teacher, criterion
        self._match, self._temperature, self._weight = match, temperature, weight
        self._hints, self._hint_weight = hints, hint_weight
        teacher.module.eval().requires_grad_(False)

    def __call__(self, outputs: Sequence[Any], inputs: Sequence[Any], target: Any) -> torch.Tensor:
        """From flat outputs, flat inputs and a batch's target to a scalar."""
        self._teacher.module.to(next(t.device for t in outputs if is_float(t)))
        with torch.no_grad():
            wanted = self._teacher(*inputs)
        loss = self._distance(outputs, wanted)
        if len(self._hints):
            loss = loss + self._hint_weight * self._hints.distance()
        if self._criterion is None:
            return loss
        return self._weight * loss + (1 - self._weight) * self._criterion(outputs, target)

    def _distance(self, outputs: Sequence[Any], wanted: Sequence[Any]) -> torch.Tensor:
        pairs = [(y, w) for y, w in zip(outputs, wanted, strict=True) if is_float(w)]
        compare = self._divergence if self._match == "logits" else relative_square
        return torch.stack([compare(y, w) for y, w in pairs]).mean()

    def _divergence(self, output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Of the softmax over classes, times the temperature's square."""
        t, classes = self._temperature, class_dimension(wanted)
        found, right = (
            F.log_softmax(scores.movedim(classes, -1).flatten(0, -2) / t, -1)
            for scores in (output, wanted)
        )
        return F.kl_div(found, right, reduction="batchmean", log_target=True) * t * t
