"""The loop over epochs and batches, which can be stopped anywhere and taken up again."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxopt.errors import InputError
from fxopt.ir import Program
from fxopt.training import checkpoint
from fxopt.training.data import Batch, count, walk
from fxopt.training.identity import describe_data
from fxopt.training.optimizers import make_optimizer, make_schedule
from fxopt.training.processes import Processes, connect
from fxopt.training.settings import Training

_SHOWN_EVERY = 1.0  # seconds


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        epochs: How many were completed.
        losses: Mean training loss of each of them.
        seconds: How long it took, without what was done before it was resumed.
        stopped: Why it ended early; empty where it did not.
    """

    epochs: int
    losses: tuple[float, ...]
    seconds: float
    stopped: str = ""

    def __str__(self) -> str:
        last = f", loss {self.losses[-1]:.3g}" if self.losses else ""
        early = f", ended early: {self.stopped}" if self.stopped else ""
        return f"{self.epochs} epochs{last}{early}"


@dataclass
class _Position:
    """How far a training has come.

    Attributes:
        epoch: Epochs that are complete.
        step: Batches of the current one that are.
        total: Sum of the losses of those.
        losses: Mean loss of each complete epoch.
        best: The lowest loss by which epochs are judged.
        waited: Epochs since then.
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    losses: list[float] = field(default_factory=list)
    best: float = math.inf
    waited: int = 0


class Loop:
    """One training, from its start or its last checkpoint to its end.

    Args:
        program: What is trained, in place.
        settings: How.
        objective: What is minimised, of flat outputs, flat inputs and target.
        name: For the lines that are shown.
        seed: For the order of the data and whatever else is random.
        folder: Where the checkpoint goes; None for none.
        deadline: ``time.monotonic()`` at which it ends.
        progress: Takes a line to show.
        after_step: Called after each step.
        key: What tells ``objective`` and ``after_step`` from others.
        evaluating: Modules that stay in evaluation mode.
    """

    def __init__(
        self,
        program: Program,
        settings: Training,
        objective: Callable[[Sequence[Any], Sequence[Any], Any], torch.Tensor],
        *,
        name: str,
        seed: int,
        folder: Path | None,
        deadline: float | None,
        progress: Callable[[str], None],
        after_step: Callable[[], None],
        key: str,
        evaluating: Sequence[nn.Module],
    ) -> None:
        self._program, self._settings, self._objective = program, settings, objective
        self._name, self._seed, self._folder, self._key = name, seed, folder, key
        self._deadline, self._progress, self._after_step = deadline, progress, after_step
        self._evaluating = evaluating
        self._accelerator = connect()
        self._processes = Processes(self._accelerator)
        self._parameters = trainable(program.module)
        self._per_epoch = count(settings.data)
        self._position = _Position()
        self._resumed: dict[str, Any] | None = None  # random state of the checkpoint
        self._kept: dict[str, torch.Tensor] | None = None  # weights of the best epoch
        self._shown = self._saved = time.monotonic()

    def run(self) -> Trained:
        """Trains to the end, or to the deadline.

        Raises:
            InputError: The data cannot be used, or the loss is no number any more.
        """
        start = time.monotonic()
        if not self._parameters:
            raise InputError("training: the model has no parameters to train")
        with self._training_mode(), torch.enable_grad():
            self._begin()
            stopped = self._epochs()
            self._end()
        position = self._position
        spent = time.monotonic() - start
        return Trained(position.epoch, tuple(position.losses), spent, stopped)

    def _begin(self) -> None:
        module, settings = self._program.module, self._settings
        self._identity = "" if self._folder is None else self._digest()
        self._home = next((t.device for t in module.parameters()), torch.device("cpu"))
        self._model = self._accelerator.prepare(module)
        optimizer = make_optimizer(settings, self._parameters)
        self._schedule = make_schedule(settings, optimizer, settings.epochs * self._per_epoch)
        self._optimizer = self._accelerator.prepare(optimizer)
        self._resume()

    def _end(self) -> None:
        if self._kept is not None:
            self._program.module.load_state_dict(self._kept)
        self._processes.align(self._program.module)
        self._program.module.to(self._home)
        self._optimizer.zero_grad()

    def _epochs(self) -> str:
        """Why it ended early; empty where it did not."""
        position, settings = self._position, self._settings
        while position.epoch < settings.epochs:
            if settings.patience is not None and position.waited >= settings.patience:
                return f"no lower loss in {position.waited} epochs"
            if not self._epoch():
                return "time limit"
            position.losses.append(position.total / position.step)
            position.epoch, position.step, position.total = position.epoch + 1, 0, 0.0
            self._judge()
            self._save()
        return ""

    def _epoch(self) -> bool:
        """Trains for the rest of an epoch; False where time is up before its end.

        That is asked before a batch is drawn, which may take random numbers.
        """
        if self._is_late():
            self._save()
            return False
        for batch in self._batches():
            self._step(batch)
            self._show()
            late = self._position.step < self._per_epoch and self._is_late()
            if late or time.monotonic() - self._saved >= self._settings.checkpoint_seconds:
                self._save()
            if late:
                return False
        return True

    def _is_late(self) -> bool:
        deadline = self._deadline
        return deadline is not None and self._processes.any(time.monotonic() > deadline)

    def _batches(self) -> Iterator[Batch]:
        """The batches of this epoch that are left.

        Those that are done are walked again, since whatever makes them may use random numbers;
        then all goes on from the random state of the checkpoint.
        """
        labelled = self._settings.loss is not None
        batches = walk(self._settings.data, labelled, self._seed + self._position.epoch)
        for _, _batch in zip(range(self._position.step), batches, strict=False):
            pass
        if self._resumed is not None:
            checkpoint.set_random_state(self._resumed)
            self._resumed = None
        return batches

    def _step(self, batch: Batch) -> None:
        seed, position = self._seed % 2**32, self._position
        with self._processes.own_draws(seed, position.epoch, position.step):
            loss = self._loss(batch)
        shown = float(self._processes.mean(loss))
        if not math.isfinite(shown):
            raise InputError(
                f"training: the loss is {shown} in epoch {self._position.epoch + 1}, "
                f"batch {self._position.step + 1}",
                hint="lower learning_rate, or set clip=1.0",
            )
        self._optimizer.zero_grad()
        self._accelerator.backward(loss)
        if self._settings.clip is not None:
            self._accelerator.clip_grad_norm_(self._parameters, self._settings.clip)
        self._optimizer.step()
        self._schedule.step()
        self._after_step()
        self._position.step += 1
        self._position.total += shown

    def _loss(self, batch: Batch) -> torch.Tensor:
        from accelerate.utils import send_to_device

        device = self._accelerator.device
        args, kwargs, target = send_to_device(self._processes.share(batch), device)
        flat = self._program.signature.flatten(args, kwargs)
        low = self._settings.precision == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            return self._objective(self._model(*flat), flat, target)

    def _judge(self) -> None:
        """Says whether the last epoch was the best, and keeps its weights."""
        position, data = self._position, self._settings.validation
        loss = position.losses[-1] if data is None else self._validation_loss(data)
        better = loss < position.best
        position.best = min(loss, position.best)
        position.waited = 0 if better else position.waited + 1
        if better and data is not None:
            self._kept = _copied(self._program.module)

    def _validation_loss(self, data: Any) -> float:
        self._program.module.eval()
        labelled = self._settings.loss is not None
        with torch.no_grad():
            batches = walk(data, labelled, self._seed)
            losses = [float(self._processes.mean(self._loss(batch))) for batch in batches]
        self._train_mode()
        return sum(losses) / len(losses)

    def _show(self) -> None:
        if time.monotonic() - self._shown < _SHOWN_EVERY or not self._processes.is_first:
            return
        self._shown, position = time.monotonic(), self._position
        share = position.step / max(1, self._per_epoch)
        self._progress(
            f"{self._name}: epoch {position.epoch + 1} of {self._settings.epochs}, {share:.0%}, "
            f"loss {position.total / position.step:.3g}"
        )

    def _save(self) -> None:
        self._saved = time.monotonic()
        if self._folder is None or not self._processes.is_first:
            return
        state = {
            "position": asdict(self._position),
            "module": self._program.module.state_dict(),
            "kept": self._kept,
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": self._resumed or checkpoint.random_state(),
        }
        checkpoint.save(state, self._folder, self._name, self._identity)

    def _resume(self) -> None:
        if self._folder is None:
            return
        state = checkpoint.load(self._folder, self._name, self._identity)
        if state is None:
            return
        self._position = _Position(**state["position"])
        self._program.module.load_state_dict(state["module"])
        self._kept = state["kept"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._resumed = state["random"]
        position = self._position
        done = f"{position.epoch} epochs and {position.step} batches"
        self._progress(f"{self._name}: goes on after {done}")

    def _digest(self) -> str:
        """Of what is trained, how, and on what: checkpoints of anything else are left alone."""
        settings, seed = self._settings, self._seed
        labelled, judges = settings.loss is not None, settings.validation
        parts = [self._program.fingerprint(), settings.described(), str(seed), self._key]
        parts.append(describe_data(settings.data, self._per_epoch, labelled, seed))
        if judges is not None:
            parts.append(describe_data(judges, count(judges), labelled, seed))
        return hashlib.blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()

    def _train_mode(self) -> None:
        self._program.module.train()
        for module in self._evaluating:
            module.eval()

    @contextmanager
    def _training_mode(self) -> Iterator[None]:
        module = self._program.module
        modes = {child: child.training for child in module.modules()}
        asked = {parameter: parameter.requires_grad for parameter in module.parameters()}
        self._train_mode()
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for child, mode in modes.items():
                child.training = mode
            for parameter, wanted in asked.items():
                parameter.requires_grad_(wanted)
                parameter.grad = None


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that ask for gradients; all floating ones where none does."""
    floating = [p for p in module.parameters() if p.is_floating_point()]
    return [p for p in floating if p.requires_grad] or floating


def _copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
