"""Which outputs are scores of classes, and along which dimension."""

from __future__ import annotations

from typing import Any, Literal, TypeGuard

import torch
from torch import nn
from torch.nn import functional as F

from fxopt.plugin import PassError, Program

Match = Literal["auto", "logits", "outputs"]

# Losses of numbers, or of classes that do not exclude each other: no softmax belongs to them.
_FUNCTIONS = (
    F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss,
    F.binary_cross_entropy, F.binary_cross_entropy_with_logits,
)  # fmt: skip
_MODULES = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss
)  # fmt: skip


def choose(match: Match, program: Program, loss: object) -> Match:
    """``logits`` or ``outputs``: what is asked for, or what outputs and loss suggest.

    Args:
        match: What the user asks for.
        program: Whose outputs are compared.
        loss: The user's; None without labels.

    Raises:
        PassError: Scores are asked for, and an output has none.
    """
    values = [value for value in _outputs(program) if is_float(value)]
    if match == "auto":
        alone = len(values) == 1 and values[0].dim() == 2 and _has_classes(values[0])
        return "logits" if alone and not _is_without_classes(loss) else "outputs"
    for value in values:
        if match == "logits" and not _has_classes(value):
            shape = ", ".join(map(str, value.shape))
            raise PassError(
                f"distill{{match=logits}} needs scores of two classes at least, and an output of "
                f"shape ({shape}) has none",
                hint="use match=outputs",
            )
    return match


def class_dimension(value: torch.Tensor) -> int:
    """Behind the batch for images, as cross_entropy has it; the last one for tokens."""
    return 1 if value.dim() > 3 else -1


def is_float(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether it is a tensor that can be imitated."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _outputs(program: Program) -> list[Any]:
    return [node.meta.get("val") for node in program.output.all_input_nodes]


def _has_classes(value: torch.Tensor) -> bool:
    return value.dim() > 1 and bool(value.shape[class_dimension(value)] != 1)


def _is_without_classes(loss: object) -> bool:
    return loss in _FUNCTIONS or isinstance(loss, _MODULES)
