"""Runs a program as it stands: what every other backend has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxopt.plugin import Backend, BackendInfo, Executable, Lowering, Program, Target, Tensors


@dataclass(frozen=True)
class Eager(Backend):
    """Calls the graph node by node; nothing is translated, so nothing can go wrong."""

    info = BackendInfo(name="eager", targets=("cpu", "cuda"), native=True)

    def lower(self, program: Program, inputs: Tensors, target: Target) -> Lowering:
        return EagerLowering(program)


class EagerLowering(Lowering):
    """The program itself, which takes inputs of any size.

    Args:
        program: What to run.
    """

    def __init__(self, program: Program) -> None:
        self._program = program

    def compile(self, inputs: Tensors) -> Executable:
        return EagerExecutable(self._program)


class EagerExecutable(Executable):
    """Calls the program without recording gradients.

    Args:
        program: What to run.
    """

    def __init__(self, program: Program) -> None:
        self._module = program.module

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            outputs: tuple[torch.Tensor, ...] = self._module(*inputs)
        return outputs
