"""How much each unit matters."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Literal

import numpy as np
import torch
from torch import nn

from fxopt.plugin import Calibration, CalibrationError, Context, Program
from fxopt_prune.channels import Group, Side, Structure
from fxopt_prune.energies import Taken, input_energies
from fxopt_prune.gradients import backward
from fxopt_prune.work import Scores

Importance = Literal["auto", "magnitude", "activation", "gradient", "taylor", "random"]


def scores_of(
    program: Program, structure: Structure, context: Context, importance: Importance
) -> list[Scores]:
    """The importance of all units, group by group.

    Args:
        program: Is not changed.
        structure: Its groups.
        context: With calibration data, or data to train on, where the importance takes some.
        importance: ``magnitude`` is the norm of all weights that go with a unit, of what makes
            and of what takes it (as in Fang et al., "DepGraph", 2023), each relative to its mean
            over the units. ``activation`` is the norm of what a unit adds to the outputs of the
            layers that take it, on calibration data; ``magnitude`` for the groups of which
            :func:`seen` finds no side. ``gradient`` is the sum of the magnitudes of dL/dw over
            the weights that go with it, and ``taylor`` the norm over batches of the sum of w dL/dw
            (Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019).
            ``random`` is by ``context.seed``. ``auto`` is ``activation`` where there are
            calibration data, else ``magnitude``.

    Raises:
        CalibrationError: There are no data.
    """
    groups = structure.groups
    if importance == "random":
        random = np.random.default_rng(context.seed)
        return [random.random(len(group)) for group in groups]
    if goes_by_data(importance, context):
        return _by_activation(program, structure, calibration_of(context, importance))
    if importance in ("auto", "magnitude"):
        return [_by_magnitude(group) for group in groups]
    scores = [np.zeros(len(group)) for group in groups]
    for gradients in backward(program, context):
        for group, score in zip(groups, scores, strict=True):
            score += _of_gradients(group, gradients, importance == "taylor")
    return [np.sqrt(score) for score in scores] if importance == "taylor" else scores


def goes_by_data(importance: Importance, context: Context) -> bool:
    """Whether what units add on calibration data decides."""
    return importance == "activation" or (importance == "auto" and context.calibration is not None)


def seen(group: Group, taken: Container[Taken]) -> list[Side]:
    """The sides of a group that multiply what layers take that are understood."""
    return [side for side in group.sides if (id(side.tensor), side.dim) in taken]


def calibration_of(context: Context, wanted_by: str) -> Calibration:
    """The calibration data.

    Raises:
        CalibrationError: There are none.
    """
    if context.calibration is None:
        raise CalibrationError(
            f"importance={wanted_by} needs calibration data",
            hint="give fxopt.optimize(calibration=), an iterable of batches",
        )
    return context.calibration


def _by_magnitude(group: Group) -> Scores:
    return np.asarray(np.sqrt(_summed(group, _squares, relative=True)))


def _summed(
    group: Group, weigh: Callable[[torch.Tensor], torch.Tensor], relative: bool = False
) -> Scores:
    """The sum of what the weights of each unit count.

    Args:
        group: The units.
        weigh: What each element of a weight counts.
        relative: Whether each weight counts relative to the mean of its units, so that the one
            number that a batch norm has for a channel is worth as much as a kernel.
    """
    total = np.zeros(len(group))
    for side in group.sides:
        if isinstance(side.tensor, nn.Parameter) and side.tensor.is_floating_point():
            each = along(weigh(side.tensor), side.dim)[side.positions].sum(1)
            total += each / max(float(each.mean()), 1e-30) if relative else each
    return total


def along(values: torch.Tensor, dim: int) -> Scores:
    """Sums over all dimensions but one."""
    others = [other for other in range(values.dim()) if other != dim]
    summed = values.sum(others) if others else values
    return np.asarray(summed.detach().double().cpu().numpy())


def _squares(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().double().square()


def _of_gradients(group: Group, gradients: dict[int, torch.Tensor], taylor: bool) -> Scores:
    """What one batch adds: squared sums of w dL/dw, or sums of magnitudes of dL/dw."""

    def weigh(weight: torch.Tensor) -> torch.Tensor:
        gradient = gradients.get(id(weight))
        if gradient is None:
            return torch.zeros_like(weight)
        return weight.detach() * gradient if taylor else gradient.abs()

    total = _summed(group, weigh)
    return np.square(total) if taylor else total


def _by_activation(
    program: Program, structure: Structure, calibration: Calibration
) -> list[Scores]:
    """The norm of what the units add to outputs, by the norms of what is multiplied."""
    energies = input_energies(program, calibration)
    return [
        _added(group, energies) if seen(group, energies) else _by_magnitude(group)
        for group in structure.groups
    ]


def _added(group: Group, energies: Mapping[Taken, Scores]) -> Scores:
    total = np.zeros(len(group))
    for side in seen(group, energies):
        energy = energies[id(side.tensor), side.dim]
        products = along(_squares(side.tensor), side.dim) * energy
        total += products[side.positions].sum(1)
    return np.asarray(np.sqrt(total))
