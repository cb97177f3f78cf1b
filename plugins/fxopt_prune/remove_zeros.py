"""The pass ``remove_zeros``: what is zero for any input goes, and nothing changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxopt.plugin import (
    Context,
    Edit,
    Exact,
    Pass,
    PassError,
    PassInfo,
    PassResult,
    Program,
    size_hint,
)
from fxopt_prune.channels import Structure, find_groups
from fxopt_prune.shrink import may_be_zero, remove, rows_to_run, zero_units

_FEW = 2  # rows


@dataclass(frozen=True)
class RemoveZeros(Pass):
    """Removes the channels and other units of which nothing but zeros ever comes.

    For models that somebody has made sparse: zero filters whose batch norm shifts by zero, zero
    rows of linear layers. A unit goes if it is zero wherever something is computed from it, however
    it comes to that: a ReLU may cut off what a norm shifts below zero, a gate may multiply zeros.
    One of each group stays. Where no weight has a slice of zeros, nothing is looked for.
    """

    info: ClassVar[PassInfo] = PassInfo(
        name="remove_zeros", stage="structure", fidelity=Exact(), after=("prune", "sparsify")
    )

    def run(self, program: Program, context: Context) -> PassResult:
        """Finds and removes them.

        Raises:
            PassError: There are no example inputs to run the program on.
        """
        if not context.examples:
            raise PassError("remove_zeros runs each operation once, and there are no examples")
        with program.edit() as edit:
            units = _removed(program, edit, context.examples[0]) if may_be_zero(program) else 0
        found = f"{units} units that were zero" if units else "no unit is zero for any input"
        return edit.result(found, units=units)


def _removed(program: Program, edit: Edit, flat: Sequence[Any]) -> int:
    """Removes the units; how many they were, if that was possible."""
    structure = find_groups(program)
    units = _all_but_one(structure, zero_units(program, structure, _rows(program, structure, flat)))
    rewrite = f"{len(units)} zero units removed"
    return len(units) if units and remove(program, edit, structure, units, rewrite) else 0


def _rows(program: Program, structure: Structure, flat: Sequence[Any]) -> list[Any]:
    """A few rows of a batch of any size: how many there are does not matter to what is zero."""

    def cut(node: fx.Node, value: Any) -> Any:
        if not (program.signature.batch and _is_batched(node)):
            return value
        captured = size_hint(node.meta["val"].shape[0])
        return _first(value, rows_to_run(program, structure, captured, _FEW))

    return [cut(node, value) for node, value in zip(program.inputs, flat, strict=True)]


def _first(value: torch.Tensor, rows: int) -> torch.Tensor:
    """So many rows, some of them again where there are fewer."""
    return torch.cat([value] * -(-rows // len(value)))[:rows]


def _is_batched(node: fx.Node) -> bool:
    value = node.meta["val"]
    is_tensor = isinstance(value, torch.Tensor) and value.dim() > 0
    return is_tensor and isinstance(value.shape[0], torch.SymInt)


def _all_but_one(structure: Structure, units: list[int]) -> list[int]:
    """Those that go: of a group that is zero altogether, the first unit stays."""
    zero, stays = set(units), set[int]()
    for group in structure.groups:
        if zero.issuperset(group.units.tolist()):
            stays.add(int(group.units[0]))
    return [unit for unit in units if unit not in stays]
