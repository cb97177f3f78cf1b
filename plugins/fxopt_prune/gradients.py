"""Gradients of weights, batch by batch: of the user's loss, or without labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn

from fxopt.plugin import Calibration, CalibrationError, Context, Program

_BATCHES = 16


def backward(program: Program, context: Context) -> Iterator[dict[int, torch.Tensor]]:
    """The gradients of all parameters on a few batches.

    With labelled data to train on, of the user's loss. Without, of the outputs weighted by random
    signs: the mean of their squares is the Fisher information where outputs have Gaussian noise,
    which tells how much a change of a weight changes the outputs.

    Yields:
        For each batch, gradients by the identity of the parameter.

    Raises:
        CalibrationError: There are no data.
    """
    parameters = [p for p in program.module.parameters() if p.is_floating_point()]
    training = context.training
    if training is not None and training.labelled:
        losses = training.losses(program)
    elif context.calibration is not None:
        losses = _unlabelled(program, context.calibration, context.seed)
    else:
        raise CalibrationError(
            "an importance by gradients needs data",
            hint="give fxopt.optimize(training=) with a loss, or calibration=",
        )
    with _all_trainable(parameters), torch.enable_grad():
        for loss in islice(losses, _BATCHES):
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
            pairs = zip(parameters, found, strict=True)
            yield {id(parameter): g for parameter, g in pairs if g is not None}


def _unlabelled(program: Program, batches: Calibration, seed: int) -> Iterator[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    for flat in batches:
        outputs = [y for y in program(*flat) if isinstance(y, torch.Tensor) and y.requires_grad]
        yield torch.stack([(y * _signs(y, random)).sum() for y in outputs]).sum()


def _signs(y: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return (2 * torch.randint(0, 2, y.shape, generator=random) - 1).to(y)


@contextmanager
def _all_trainable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Frozen weights have gradients too, meanwhile."""
    asked = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, before in zip(parameters, asked, strict=True):
            parameter.requires_grad_(before)
