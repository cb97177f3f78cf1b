"""How the user wants a model to be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from fxopt.errors import InputError
from fxopt.training.identity import describe

Loss = Callable[[Any, Any], torch.Tensor]
"""From the model's outputs and a batch's target to a scalar."""

LossName = Literal["cross_entropy", "mse"]
OptimizerName = Literal["sgd", "adam", "adamw"]
OptimizerFactory = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
ScheduleName = Literal["cosine", "linear", "constant"]
ScheduleFactory = Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler]
Precision = Literal["f32", "bf16"]

_LOSSES: dict[str, Loss] = {"cross_entropy": F.cross_entropy, "mse": F.mse_loss}
_LEARNING_RATES = {"sgd": 1e-2, "adam": 1e-4, "adamw": 1e-4}


@dataclass(frozen=True)
class Training:
    """Data, and how to train on them; for ``fxopt.optimize(training=)``.

    Where ``accelerate launch`` or ``torchrun`` has started several processes, each of them takes
    its share of every batch, on a device of its own; all end with the same weights.

    Attributes:
        data: Any iterable that can be walked anew for each epoch, such as a DataLoader. It yields
            pairs of inputs and target; inputs are a tensor, a tuple of positional or a dict of
            keyword inputs. Where ``loss`` is None, it yields inputs alone.
        loss: From outputs and target to a scalar; ``cross_entropy`` and ``mse`` by name. None
            for data without labels: then the original model says what is right.
        epochs: How often the data are walked.
        optimizer: ``sgd`` with momentum, ``adam``, ``adamw``, or a function from groups of
            parameters to an optimizer, such as ``torch.optim.RAdam``.
        learning_rate: Of the named optimizers; by default 0.01 for ``sgd``, 0.0001 for the others.
        momentum: Of ``sgd``.
        weight_decay: Of the named optimizers, for what has at least two dimensions.
        schedule: What the learning rate does after the warm-up: falls to zero by ``cosine`` or
            ``linear``, stays ``constant``, or a function from the optimizer and the number of
            steps to a scheduler, which is stepped after each batch.
        warmup: Share of the steps in which the learning rate rises from zero; of named schedules.
        precision: What autocast computes in.
        clip: Largest norm of the gradient; by default it is as it comes.
        teacher: What ``distill`` learns from instead of the original, such as a larger model of
            which the one to optimize is a smaller version: a module that takes the same inputs
            and yields outputs of the same shapes. It is not changed.
        validation: Data of the same form, by which the best epoch is chosen; by default the
            weights of the last epoch are kept.
        patience: After so many epochs without a lower loss on ``validation``, or on the training
            data where there is none, training ends.
        checkpoint_seconds: How much work may be lost when the process is killed; 0 saves after
            every step.
    """

    data: Iterable[Any]
    loss: Loss | LossName | None = "cross_entropy"
    epochs: int = 2
    optimizer: OptimizerName | OptimizerFactory = "adamw"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: ScheduleName | ScheduleFactory = "cosine"
    warmup: float = 0.05
    precision: Precision = "f32"
    clip: float | None = None
    teacher: nn.Module | None = None
    validation: Iterable[Any] | None = None
    patience: int | None = None
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        _check_data("data", self.data)
        if self.validation is not None:
            _check_data("validation", self.validation)
        if self.teacher is not None and not isinstance(self.teacher, nn.Module):
            raise InputError(
                f"training: teacher is a {type(self.teacher).__name__}, not an nn.Module"
            )
        _check_name("loss", self.loss, LossName, optional=True)
        _check_name("optimizer", self.optimizer, OptimizerName)
        _check_name("schedule", self.schedule, ScheduleName)
        if self.precision not in get_args(Precision):
            raise InputError(f"precision={self.precision!r} is neither f32 nor bf16")
        _check_numbers(self)
        _check_own(self)

    @property
    def criterion(self) -> Loss | None:
        """The loss as a function."""
        return _LOSSES[self.loss] if isinstance(self.loss, str) else self.loss

    @property
    def rate(self) -> float:
        """The learning rate of a named optimizer."""
        if self.learning_rate is not None or not isinstance(self.optimizer, str):
            return self.learning_rate or 0.0
        return _LEARNING_RATES[self.optimizer]

    def described(self) -> str:
        """All settings but data and teacher, in one line, the same in every process."""
        settings = {name: value for name, value in vars(self).items() if name not in _UNNAMED}
        return ", ".join(f"{name}={describe(value)}" for name, value in settings.items())


_OF_NAMED = {"optimizer": ("learning_rate", "momentum", "weight_decay"), "schedule": ("warmup",)}
_UNNAMED = {"data", "validation", "teacher", "checkpoint_seconds"}


def _check_data(name: str, data: object) -> None:
    if isinstance(data, Iterator):
        raise InputError(
            f"training: {name} is an iterator, which can be walked once",
            hint="give a list of batches or a DataLoader",
        )
    if not isinstance(data, Iterable):
        raise InputError(f"training: {name} is a {type(data).__name__}, not an iterable of batches")


def _check_name(name: str, value: object, names: Any, optional: bool = False) -> None:
    known = get_args(names)
    if (value is None and optional) or callable(value) or value in known:
        return
    raise InputError(
        f"training: {name}={value!r} is not known",
        hint=f"it is one of {', '.join(known)}, or a function",
    )


def _check_numbers(training: Training) -> None:
    for name, least in (("epochs", 0), ("patience", 1)):
        value = getattr(training, name)
        if value is not None and (not isinstance(value, int) or value < least):
            raise InputError(f"training: {name}={value!r} is no number of at least {least}")
    for name in ("learning_rate", "momentum", "weight_decay", "clip", "checkpoint_seconds"):
        value = getattr(training, name)
        if value is not None and not value >= 0:
            raise InputError(f"training: {name}={value!r} must not be negative")
    if not 0 <= training.warmup < 1:
        raise InputError(f"training: warmup={training.warmup!r} must be from 0 to below 1")


def _check_own(training: Training) -> None:
    """Settings of named optimizers and schedules say nothing to the user's own."""
    defaults = {each.name: each.default for each in fields(training)}
    for own, names in _OF_NAMED.items():
        for name in names:
            value = getattr(training, name)
            if callable(getattr(training, own)) and value != defaults[name]:
                raise InputError(
                    f"training: {name}={value!r} has no effect, since {own} is a function",
                    hint=f"leave out {name}, and see to it in that function",
                )
