"""Runs int8 layers on torch's own oneDNN operators, node by node: no compiler is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import fx

from fxopt.plugin import (
    Backend,
    BackendError,
    BackendInfo,
    Executable,
    Kernel,
    Lowering,
    Program,
    Target,
    Tensors,
)
from fxopt_inductor.backend import Inductor
from fxopt_inductor.flat import flat_module, plain
from fxopt_inductor.lowp import Form, heavy_kernels, is_quantized, missing_operators, rewrite
from fxopt_inductor.lowp.folding import fold_constants
from fxopt_inductor.lowp.safety import protect_addends

_INTEGERS = {torch.int8, torch.uint8, torch.int32}  # what quantized weights are kept in
_IDLE = "no layer of the program is quantized, so it has nothing to do"


@dataclass(frozen=True)
class OneDNN(Backend):
    """Calls oneDNN's int8 operators, activations and residual sums fused in, from plain Python.

    It is for programs with quantized layers; the operations between them run as torch has them.
    """

    info: ClassVar[BackendInfo] = BackendInfo(name="onednn", targets=("cpu",), node_by_node=True)

    def unavailable(self) -> str | None:
        """What this build of torch lacks; None when it can be used."""
        return missing_operators()

    def unsupported(self, program: Program, target: Target) -> str | None:
        """Why it cannot take ``program``; None when it can."""
        if target.name not in self.info.targets:
            return f"it lowers to cpu, not to {target.name}"
        tensors = chain(program.module.parameters(), program.module.buffers())
        return None if any(tensor.dtype in _INTEGERS for tensor in tensors) else _IDLE

    def tunings(
        self, program: Program, inputs: Tensors, target: Target, milliseconds: float
    ) -> Sequence[Backend]:
        """The same operators called from compiled code, with what lies between them fused."""
        compiled = Inductor().calling(program, milliseconds)
        return (compiled, *Inductor(cpp_wrapper=True).templates(program, target))

    def lower(self, program: Program, inputs: Tensors, target: Target) -> Lowering:
        """Nothing is translated before sizes are known."""
        return OneDNNLowering(program)


class OneDNNLowering(Lowering):
    """The program itself: weights are packed for fixed sizes.

    Args:
        program: What to lower.
    """

    def __init__(self, program: Program) -> None:
        self._program = program

    def compile(self, inputs: Tensors) -> Executable:
        """Rewrites the program for inputs of these shapes.

        Raises:
            BackendError: No layer of the program is quantized, or torch.export refuses it.
        """
        with torch.no_grad():
            module = flat_module(self._program, [plain(tensor) for tensor in inputs])
            if not is_quantized(module):
                raise BackendError(_IDLE)
            module = rewrite(module, Form(compiled=False))
            fold_constants(module)
            protect_addends(module.graph)
        module.recompile()
        return OneDNNExecutable(module)


class OneDNNExecutable(Executable):
    """A graph of ATen and oneDNN operators.

    Args:
        module: It holds no state but constants, so any number of threads may call it.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self._forward = module.forward

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            outputs: tuple[torch.Tensor, ...] = self._forward(
                *(tensor.detach() for tensor in inputs)
            )
            return outputs

    def kernels(self) -> tuple[Kernel, ...]:
        """The heavy operations of the graph, in order."""
        return tuple(heavy_kernels(self.module).values())
