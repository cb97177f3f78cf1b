"""How much each single weight matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from fxopt.plugin import Context, Program
from fxopt_prune.energies import input_energies
from fxopt_prune.gradients import backward
from fxopt_prune.importance import calibration_of

Saliency = Literal["magnitude", "activation", "gradient", "taylor", "random"]

Weights = Mapping[str, nn.Parameter]
"""By the name of the first layer that has them."""

Scores = dict[str, torch.Tensor]
"""A number for each weight, of the shape of the parameter."""


def saliencies(
    program: Program, context: Context, weights: Weights, by: Saliency
) -> tuple[Scores, int]:
    """What each weight matters; those that are zero already matter least.

    Args:
        program: Is not changed.
        context: With calibration data, or data to train on, where ``by`` takes some.
        weights: Those of layers.
        by: See ``Sparsify``.

    Returns:
        The scores, and for how many layers magnitudes decide though data should.

    Raises:
        CalibrationError: There are no data.
    """
    unseen = 0
    if by == "activation":
        scores, unseen = _by_activation(program, context, weights)
    elif by == "random":
        random = torch.Generator().manual_seed(context.seed)
        scores = {name: torch.rand(w.shape, generator=random).to(w) for name, w in weights.items()}
    elif by == "magnitude":
        scores = {name: weight.detach().abs() for name, weight in weights.items()}
    else:
        scores = _by_gradients(program, context, weights, taylor=by == "taylor")
    pairs = ((name, weights[name], score) for name, score in scores.items())
    return {name: score.masked_fill(weight == 0, -1.0) for name, weight, score in pairs}, unseen


def _by_activation(program: Program, context: Context, weights: Weights) -> tuple[Scores, int]:
    energies = input_energies(program, calibration_of(context, "activation"))
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    seen = {name: weight for name, weight in weights.items() if (id(weight), 1) in energies}
    for name, weight in seen.items():
        norms = torch.from_numpy(energies[id(weight), 1]).sqrt().to(weight)
        scores[name] *= norms.view(1, -1, *[1] * (weight.dim() - 2))
    return scores, len(weights) - len(seen)


def _by_gradients(program: Program, context: Context, weights: Weights, taylor: bool) -> Scores:
    """Sums over batches of (w dL/dw)^2, or of the magnitudes of dL/dw."""
    scores = {name: torch.zeros_like(weight).detach() for name, weight in weights.items()}
    for gradients in backward(program, context):
        for name, weight in weights.items():
            gradient = gradients.get(id(weight))
            if gradient is not None:
                each = (weight.detach() * gradient).square() if taylor else gradient.abs()
                scores[name] += each
    return scores
