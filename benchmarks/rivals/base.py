"""What a rival is, which models it suits, and how long building it may take."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...]
Call = Callable[[], torch.Tensor]
Builder = Callable[[nn.Module, Inputs], Call]
Predict = Callable[..., torch.Tensor]
OnInputs = Callable[[Inputs], Call]


def any_batch(inputs: Inputs) -> tuple[dict[int, Any], ...]:
    """``dynamic_shapes`` for ``torch.export``: the first dimension of all inputs is the batch."""
    return tuple({0: torch.export.Dim("batch")} for _ in inputs)


def always(model: nn.Module) -> bool:
    return True


def attends(model: nn.Module) -> bool:
    return any("attention" in type(module).__name__.lower() for module in model.modules())


def convolves(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())


def linear(model: nn.Module) -> bool:
    """Whether most learned weights are in linear and recurrent layers, embeddings aside."""
    kinds = (nn.Linear, nn.MultiheadAttention, nn.RNNBase)
    return _parameters(model, kinds) > _parameters(model, (nn.modules.conv._ConvNd,))


def _parameters(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> int:
    found = (module for module in model.modules() if isinstance(module, kinds))
    return sum(p.numel() for module in found for p in module.parameters())


@dataclass(frozen=True)
class Rival:
    """One way to run a model.

    Attributes:
        name: What tables call it.
        precision: ``fp32``, ``bf16`` or ``int8``: what it is compared with.
        build: Takes a model and inputs and returns a call of what it built.
        torch: Whether torch and torchao are all that it needs.
        autotunes: Whether it is built only where that is asked for, since it takes minutes.
        suits: Whether it makes sense for a model.
    """

    name: str
    precision: str
    build: Builder
    torch: bool = True
    autotunes: bool = False
    suits: Callable[[nn.Module], bool] = always


class TimeLimit(BaseException):
    """Not an ``Exception``: compilers and autotuners catch those and go on."""


@contextmanager
def timed(seconds: float) -> Iterator[None]:
    """Raises :class:`TimeLimit` inside the block after so many seconds; 0 means no limit.

    The signal comes again every 30 seconds, since code called from C++ may swallow it. A single
    call that never returns to Python is not stopped.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeLimit(f"not built within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 30.0 if seconds else 0.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
