"""A program and its examples as files, written once for all the backends that are tried on it."""

from __future__ import annotations

import contextlib
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxopt.errors import SavingError
from fxopt.ir import Program, Signature, is_aten
from fxopt.ir.saving import (
    TensorReader,
    TensorWriter,
    decode,
    encode,
    read_container,
    save_program,
    write_container,
)
from fxopt.ir.saving.values import UnsavableError

KIND = "examples"
Flat = Sequence[Any]


@dataclass(frozen=True)
class Parcel:
    """What is handed over to the worker; a context manager that removes its files.

    Attributes:
        program: File of the program, whose inputs and outputs are flat.
        examples: File of inputs and reference outputs.
        imports: Modules that register the operators which the program calls.
        obstacle: Why there are no such files; empty where there are.
    """

    program: Path
    examples: Path
    imports: tuple[str, ...] = ()
    obstacle: str = ""

    def remove(self) -> None:
        """Removes the files."""
        for path in (self.program, self.examples):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def __enter__(self) -> Parcel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def make_parcel(
    folder: Path, program: Program, examples: Sequence[Flat], reference: Sequence[Flat]
) -> Parcel:
    """Writes the files into ``folder``; where that is impossible, the parcel says why."""
    stem = uuid.uuid4().hex
    paths = folder / f"{stem}.program", folder / f"{stem}.examples"
    parcel = Parcel(*paths, imports=_imports(program))
    try:
        save_program(Program(program.module, _flat_signature(program), program.notes), paths[0])
        _save_examples(paths[1], examples, reference)
    except (SavingError, UnsavableError) as error:
        parcel.remove()
        what = error.what if isinstance(error, SavingError) else f"an example holds {error}"
        return Parcel(*paths, obstacle=what)
    return parcel


def load_examples(path: str) -> tuple[list[list[Any]], list[list[Any]]]:
    """The inputs and the reference outputs of a parcel, a list per example."""
    document, stored = read_container(path, KIND)
    tensors = TensorReader(document["tensors"], stored)
    inputs, reference = decode(document["flat"], lambda _, index: tensors[index])
    return inputs, reference


def _save_examples(path: Path, examples: Sequence[Flat], reference: Sequence[Flat]) -> None:
    tensors = TensorWriter()

    def reference_of(value: Any) -> dict[str, Any] | None:
        if not isinstance(value, torch.Tensor):
            return None
        return {"tensor": tensors.add(value.detach(), f"tensor{len(tensors.table)}")}

    flat = [[list(each) for each in examples], [list(each) for each in reference]]
    document = {"flat": encode(flat, reference_of), "tensors": tensors.table}
    write_container(path, KIND, document, tensors.stored)


def _flat_signature(program: Program) -> Signature:
    """One without the user's containers, whose classes another process may not know."""
    inputs, outputs = len(program.inputs), program.signature.out_spec.num_leaves
    in_spec = pytree.tree_structure((tuple(range(inputs)), {}))
    return Signature(in_spec, pytree.tree_structure((0,) * outputs), program.signature.batch)


def _imports(program: Program) -> tuple[str, ...]:
    """Packages such as torchvision, whose operators go by their name."""
    called = [node.target for node in program.nodes if is_aten(node.target)]
    spaces = {target.namespace for target in called if isinstance(target, torch._ops.OpOverload)}
    return tuple(sorted(spaces & set(sys.modules)))
