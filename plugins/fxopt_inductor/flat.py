"""A program as a flat module of ATen with fixed sizes: what both backends start from."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxopt.plugin import Program, Tensors, export_program


def flat_module(program: Program, inputs: Tensors) -> fx.GraphModule:
    """The program as ATen with fixed sizes, called with flat inputs; it shares the weights.

    Args:
        program: It is not changed.
        inputs: Detached, contiguous inputs of the sizes wanted.

    Raises:
        BackendError: torch.export refuses the program.
    """
    module: Any = export_program(program, inputs).module(check_guards=False)
    # The generated code would otherwise flatten inputs and outputs on every call.
    module.graph.set_codegen(fx.graph.CodeGen())
    module.recompile()
    flat: fx.GraphModule = module
    return flat


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as compiled code takes it: detached and dense."""
    return tensor.detach().contiguous()
