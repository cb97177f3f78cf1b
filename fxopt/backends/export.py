"""A program as plain ATen again, the form that other runtimes read."""

from __future__ import annotations

import torch
from torch import nn

from fxopt.backends.base import Tensors
from fxopt.errors import BackendError
from fxopt.ir import Program


class _Flat(nn.Module):
    """Gives a program a plain positional forward, whatever the user's signature is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs: tuple[torch.Tensor, ...] = self.module(*inputs)
        return outputs


def export_program(
    program: Program, inputs: Tensors, *, dynamic: bool = False
) -> torch.export.ExportedProgram:
    """Exports ``program`` to ATen, with weights as parameters of the exported program.

    Args:
        program: Its inputs must all be tensors.
        inputs: Example inputs.
        dynamic: Whether dimension 0 stays symbolic where the program's signature has a batch.

    Raises:
        BackendError: torch.export refuses it.
    """
    shapes = None
    if dynamic and program.signature.batch:
        shapes = (tuple({0: torch.export.Dim.AUTO} if t.dim() else None for t in inputs),)
    try:
        with torch.no_grad():
            return torch.export.export(
                _Flat(program.module).eval(), tuple(inputs), dynamic_shapes=shapes, strict=False
            )
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise BackendError(f"torch.export refuses the program: {error}") from error
