"""Weights that are zero stay zero: training keeps what pruning has made."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fxopt.plugin import Program


def keeper(program: Program) -> Callable[[], None]:
    """What puts zeros back where weights of two and more dimensions have them now.

    Returns:
        To be called after each step.
    """
    weights = [p for p in program.module.parameters() if p.dim() > 1 and p.is_floating_point()]
    sparse = [(weight, weight != 0) for weight in weights if bool((weight == 0).any())]

    def keep() -> None:
        with torch.no_grad():
            for weight, mask in sparse:
                weight.mul_(mask.to(weight.device))

    return keep
