"""Weights that are zero stay zero: training keeps what pruning has made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fxopt.ir import Program

_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def zero_keeper(program: Program) -> Callable[[], None]:
    """What puts zeros back where weights of linear layers and convolutions have them now.

    Weights that are zero altogether have yet to be learned, such as a head that begins with zeros.

    Returns:
        To be called after each step: the ``after_step`` of ``Trainer.train``.
    """
    leaves = {program.leaf(node) for node in program.find(*_LAYERS)}
    weights = {leaf.get_parameter("weight") for leaf in leaves}
    masks = [(weight, weight.detach() != 0) for weight in weights]
    sparse = [(weight, mask) for weight, mask in masks if mask.any() and not mask.all()]

    def keep() -> None:
        with torch.no_grad():
            for weight, mask in sparse:
                weight.mul_(mask.to(weight.device))

    return keep
