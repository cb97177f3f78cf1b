"""A program as plain ATen again, the form that other runtimes read."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn

from fxopt.backends.base import Tensors
from fxopt.backends.exports import LastExport
from fxopt.backends.stepwise import StepwiseProgram
from fxopt.errors import BackendError
from fxopt.ir import LeafModule, Program, recurrent_layers_not_walked

_LAST = LastExport()


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

    What is returned is the caller's to change, but for the weights, which are the program's.

    Args:
        program: Its inputs must all be tensors.
        inputs: Example inputs.
        dynamic: Whether the program has to come out with a symbolic batch.

    Raises:
        BackendError: torch.export refuses it, or ``dynamic`` is asked for and the batch is fixed.
    """
    if not dynamic:
        return _LAST.get(program, inputs, False, lambda: _export(program, inputs, None))
    shapes = (tuple({0: torch.export.Dim.AUTO} if t.dim() else None for t in inputs),)
    wide = _widened(program, inputs)
    exported = _LAST.get(program, wide, True, lambda: _export(program, wide, shapes))
    if not _has_symbolic_inputs(exported):
        raise BackendError("the program's batch is fixed")
    return exported


def _export(program: Program, inputs: Tensors, shapes: Any) -> StepwiseProgram:
    try:
        with torch.no_grad(), recurrent_layers_not_walked():
            return StepwiseProgram.of(
                torch.export.export(
                    _Flat(_exported_form(program)).eval(),
                    tuple(inputs),
                    dynamic_shapes=shapes,
                    strict=False,
                )
            )
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise BackendError(f"torch.export refuses the program: {error}") from error


def _exported_form(program: Program) -> fx.GraphModule:
    """The program with the leaves that have another form for other runtimes in that form."""
    called = {str(node.target): node for node in program.nodes if node.op == "call_module"}
    leaves = {name: program.leaf(node) for name, node in called.items()}
    forms = {leaf: _form(leaf) for leaf in leaves.values()}  # of what is shared, one
    if all(form is leaf for leaf, form in forms.items()):
        return program.module
    root: dict[str, Any] = {name: forms[leaf] for name, leaf in leaves.items()}
    root |= {str(n.target): program.tensor(n) for n in program.nodes if n.op == "get_attr"}
    return fx.GraphModule(root, copy.deepcopy(program.graph))


def _form(leaf: nn.Module) -> nn.Module:
    return leaf.exported() if isinstance(leaf, LeafModule) else leaf


def _widened(program: Program, inputs: Tensors) -> list[torch.Tensor]:
    """The inputs with a batch of at least 2: torch.export takes a size of 1 as fixed."""
    return [
        torch.cat([tensor, tensor]) if _has_batch(node) and len(tensor) == 1 else tensor
        for node, tensor in zip(program.inputs, inputs, strict=True)
    ]


def _has_symbolic_inputs(exported: torch.export.ExportedProgram) -> bool:
    names = set(exported.graph_signature.user_inputs)
    return any(_has_batch(node) for node in exported.graph.nodes if node.name in names)


def _has_batch(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dim() == 0:
        return False
    return isinstance(value.shape[0], torch.SymInt)
