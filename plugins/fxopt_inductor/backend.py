"""Lowers through Inductor: export with fixed sizes, then compile with frozen weights.

Dynamo is left out. What it captures again is a program already, and its guards would recompile
without being asked, or fall back to eager where there is a limit to that.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

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
    export_program,
)
from fxopt_inductor.kernels import HEAVY_KINDS, read_kernels
from fxopt_inductor.toolchain import missing_toolchain

Compiled = Callable[..., tuple[torch.Tensor, ...]]

# Inductor's configuration and the hook that shows its code are one per process.
_COMPILING = threading.Lock()


@dataclass(frozen=True)
class Inductor(Backend):
    """Compiles to C++ with weights frozen, folded and packed for oneDNN, in their own dtype."""

    info = BackendInfo(name="inductor", targets=("cpu",), extra="install g++ and Python's headers")

    def unavailable(self) -> str | None:
        return missing_toolchain()

    def lower(self, program: Program, inputs: Tensors, target: Target) -> Lowering:
        return InductorLowering(program)


class InductorLowering(Lowering):
    """The program itself: Inductor's code is for fixed sizes.

    Args:
        program: What to compile.
    """

    def __init__(self, program: Program) -> None:
        self._program = program

    def compile(self, inputs: Tensors) -> Executable:
        # Detached and dense, as later inputs will be; else their strides would become the code's.
        examples = [_plain(tensor) for tensor in inputs]
        module = _flat_module(self._program, examples)
        try:
            with _COMPILING, torch.no_grad(), _code_shown() as shown:
                compiled: Compiled = torch._inductor.compile(
                    module, list(examples), options={"freezing": True}
                )
        except Exception as error:  # its errors have no common base
            raise BackendError(f"Inductor cannot compile the program: {error}") from error
        return InductorExecutable(compiled, "\n".join(shown))


class InductorExecutable(Executable):
    """Compiled code.

    Args:
        compiled: What Inductor returned.
        code: Text of the module that it wrote; empty if that could not be seen.
    """

    def __init__(self, compiled: Compiled, code: str) -> None:
        self._compiled = compiled
        self.code = code

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return tuple(self._compiled(*map(_plain, inputs)))

    def kernels(self) -> tuple[Kernel, ...]:
        return read_kernels(self.code)

    def precisions(self) -> Counter[str]:
        heavy = (kernel for kernel in self.kernels() if kernel.kind in HEAVY_KINDS)
        return Counter(kernel.precision for kernel in heavy)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous()


def _flat_module(program: Program, inputs: Tensors) -> torch.fx.GraphModule:
    """The program as ATen with fixed sizes, called with flat inputs; it shares the weights."""
    module: Any = export_program(program, inputs).module(check_guards=False)
    # The generated code would otherwise flatten inputs and outputs on every call.
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    flat: torch.fx.GraphModule = module
    return flat


@contextmanager
def _code_shown() -> Iterator[list[str]]:
    """Collects the text of the modules that Inductor writes, also those from its cache."""
    from torch._inductor.graph import GraphLowering

    shown: list[str] = []
    before = getattr(GraphLowering, "save_output_code", None)
    GraphLowering.save_output_code = shown.append
    try:
        yield shown
    finally:
        GraphLowering.save_output_code = before
