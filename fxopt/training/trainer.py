"""The trainer that passes are given."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxopt.errors import InputError
from fxopt.ir import Program
from fxopt.training.data import check, walk
from fxopt.training.loop import Loop, Trained
from fxopt.training.settings import Training

__all__ = ["Criterion", "Objective", "Trained", "Trainer"]

Objective = Callable[[Sequence[Any], Sequence[Any], Any], torch.Tensor]
"""From flat outputs, flat inputs and a batch's target to a scalar."""

Criterion = Callable[[Sequence[Any], Any], torch.Tensor]
"""From flat outputs and a batch's target to a scalar."""


@dataclass(frozen=True)
class Trainer:
    """Trains programs as the user asked for.

    Attributes:
        settings: What the user asked for.
        seed: For the order of the data, and whatever is random in training.
        folder: Where checkpoints go; without it there are none. A training that was cut short
            goes on from there, to the weights that it would have had in one go.
        deadline: ``time.monotonic()`` at which training ends.
        progress: Takes a line to show.
    """

    settings: Training
    seed: int = 0
    folder: Path | None = None
    deadline: float | None = None
    progress: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        if importlib.util.find_spec("accelerate") is None:
            raise InputError(
                "training= needs accelerate, which is not installed",
                hint="pip install 'fxopt[training]'",
            )

    @property
    def labelled(self) -> bool:
        """Whether the data have labels, and a loss that judges by them."""
        return self.settings.loss is not None

    def check(self) -> None:
        """Looks at the first batch, before any work begins.

        Raises:
            InputError: There is none, or it has not the form it should have.
        """
        check(self.settings.data, self.labelled)

    def train(
        self,
        program: Program,
        *,
        name: str = "training",
        objective: Objective | None = None,
        after_step: Callable[[], None] | None = None,
        key: str = "",
        evaluating: Sequence[nn.Module] = (),
    ) -> Trained:
        """Trains the parameters of a program in place.

        Those that do not ask for gradients stay as they are, unless none asks: then the model was
        frozen for inference, and all floating ones are trained. The program is in training mode
        meanwhile, and as it was afterwards.

        Args:
            program: Its weights are changed.
            name: Of this training, unique among those of one call of ``optimize``.
            objective: What is minimised instead of the user's loss.
            after_step: Called after each step, for what must hold of the weights.
            key: What ``objective`` and ``after_step`` do, such as the settings of a pass and the
                fingerprint of a teacher. A checkpoint is gone on from only where it was the same,
                like model, settings, seed, the number of batches and the first one of them.
            evaluating: Modules of the program that stay in evaluation mode, such as batch norms
                that are to keep their statistics; their parameters are trained all the same.

        Raises:
            InputError: The data cannot be used, or there is neither a loss nor an objective.
            RuntimeError: The model itself fails on the data.
        """
        loop = Loop(
            program,
            self.settings,
            objective or self._loss(program),
            name=name,
            seed=self.seed,
            folder=self.folder,
            deadline=self.deadline,
            progress=self.progress,
            after_step=after_step or (lambda: None),
            key=key,
            evaluating=evaluating,
        )
        return loop.run()

    def criterion_of(self, program: Program) -> Criterion | None:
        """The user's loss of the flat outputs of a program and a target; None without labels."""
        criterion = self.settings.criterion
        if criterion is None:
            return None

        def judge(outputs: Sequence[Any], target: Any) -> torch.Tensor:
            return criterion(program.signature.unflatten(outputs), target)

        return judge

    def losses(self, program: Program) -> Iterator[torch.Tensor]:
        """The user's loss on batch after batch, for what wants its gradients.

        Batches go to where the program's parameters are.

        Raises:
            InputError: The data cannot be used, or there is no loss.
        """
        from accelerate.utils import send_to_device

        objective = self._loss(program)
        home = next((p.device for p in program.module.parameters()), torch.device("cpu"))
        for batch in walk(self.settings.data, self.labelled, self.seed):
            args, kwargs, target = send_to_device(batch, home)
            flat = program.signature.flatten(args, kwargs)
            yield objective(program(*flat), flat, target)

    def _loss(self, program: Program) -> Objective:
        criterion = self.criterion_of(program)
        if criterion is None:
            raise InputError(
                "training: there is no loss to train with",
                hint="give Training(loss=), or a pass that learns from the original model",
            )
        return lambda outputs, inputs, target: criterion(outputs, target)
