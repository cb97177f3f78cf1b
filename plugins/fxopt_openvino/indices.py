"""Indices that count from the end, which OpenVINO takes for others where there are several."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxopt.plugin import Program

aten = torch.ops.aten


def with_indices_from_the_start(program: Program) -> Program:
    """The program with the size added to negative numbers of all that is chosen by several tensors.

    Args:
        program: It is not changed.
    """
    if not any(_open(program, node) for node in program.nodes):
        return program
    twin = program.twin()
    with twin.edit() as edit:
        for node in twin.nodes:
            for dim in _open(twin, node):
                source, index = node.args[0], node.args[1][dim]  # type: ignore[index]
                size = edit.call(aten.sym_size.int, source, dim, before=node)
                wrapped = edit.call(aten.add.Tensor, index, size, before=node)
                negative = edit.call(aten.lt.Scalar, index, 0, before=node)
                chosen = edit.call(aten.where.self, negative, wrapped, index, before=node)
                indices = [*node.args[1]]  # type: ignore[misc]
                indices[dim] = chosen
                edit.set_arguments(node, source, indices)
    return twin


def _open(program: Program, node: fx.Node) -> list[int]:
    """The dimensions in which a node chooses by what may be negative, beside other tensors."""
    if node.target is not aten.index.Tensor:
        return []
    indices: Any = node.args[1]
    given = [index for index in indices if index is not None]
    if len(given) < 2 or any(index.meta["val"].dtype is torch.bool for index in given):
        return []
    return [
        d for d, index in enumerate(indices) if index in given and _may_be_negative(program, index)
    ]


def _may_be_negative(program: Program, index: fx.Node) -> bool:
    if index.op == "get_attr":
        return bool((program.tensor(index) < 0).any())
    return index.target not in (aten.arange.default, aten.argmax.default, aten.argmin.default)
