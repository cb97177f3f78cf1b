"""Results that a program yields more than once, which OpenVINO's front end refuses."""

from __future__ import annotations

import torch
from torch import fx

from fxopt.plugin import Program

aten = torch.ops.aten


def with_distinct_outputs(program: Program) -> Program:
    """The program with a view of its own for each further time that a result is an output.

    Args:
        program: It is not changed.
    """
    if not _repeated(program):
        return program
    twin = program.twin()
    outputs = list(twin.output.args[0])  # type: ignore[arg-type]
    with twin.edit() as edit:
        for index in _repeated(twin):
            raised = edit.call(aten.unsqueeze.default, outputs[index], 0, before=twin.output)
            outputs[index] = edit.call(aten.squeeze.dim, raised, 0, before=twin.output)
        edit.set_arguments(twin.output, tuple(outputs))
    return twin


def _repeated(program: Program) -> list[int]:
    """The indices of the outputs that are an earlier one again; inputs may be."""
    seen, found = set[fx.Node](), []
    for index, node in enumerate(program.output.args[0]):  # type: ignore[arg-type]
        if isinstance(node, fx.Node) and node.op != "placeholder":
            found += [index] if node in seen else []
            seen.add(node)
    return found
