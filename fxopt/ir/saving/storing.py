"""From a program to a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils._pytree import TreeSpec

from fxopt.errors import SavingError
from fxopt.ir.saving.container import write_container
from fxopt.ir.saving.modules import ModuleWriter
from fxopt.ir.saving.sizes import SizeWriter
from fxopt.ir.saving.specs import dump_spec
from fxopt.ir.saving.targets import function_name
from fxopt.ir.saving.tensors import TensorWriter
from fxopt.ir.saving.values import UnsavableError, encode
from fxopt.ir.text import describe_value

if TYPE_CHECKING:
    from fxopt.ir.program import Program

KIND = "program"


def save_program(
    program: Program, path: str | os.PathLike[str], beside: Mapping[str, Any] | None = None
) -> None:
    """Writes a program to one safetensors file: its tensors, and its graph as JSON.

    Nothing is pickled, and the file holds no code. Tensors that are shared are stored once. A leaf
    of a user's class that acts in training only, such as stochastic depth, is stored as the
    identity that it is otherwise, and the loaded program's notes say so.

    Args:
        program: It is not changed.
        path: Where to; a file that is there is replaced.
        beside: What else the file should hold, such as JSON can; see :func:`load_beside`.

    Raises:
        SavingError: Something in the program has no form in a file; the error names the node.
    """
    sizes, tensors = SizeWriter(), TensorWriter()
    called = [node for node in program.graph.nodes if node.op == "call_module"]
    modules = ModuleWriter(tensors, {program.leaf(node) for node in called})
    try:
        modules.add(program.module)
    except (UnsavableError, ValueError) as error:
        raise SavingError(
            f"the program cannot be saved because of {error}",
            hint="make the leaf a LeafModule whose attributes are plain values and tensors",
        ) from error
    signature = program.signature
    specs = [_nesting(spec) for spec in (signature.in_spec, signature.out_spec)]
    document = {
        "nodes": [_node(node, sizes) for node in program.graph.nodes],
        "symbols": sizes.symbols(),
        "modules": modules.table,
        "tensors": tensors.table,
        "title": type(program.module).__name__,
        "signature": {"inputs": specs[0], "outputs": specs[1], "batch": signature.batch},
        "notes": [*program.notes, *map(_note, sorted(modules.vanished.items()))],
        "torch": str(torch.__version__),
        "beside": dict(beside or {}),
    }
    write_container(path, KIND, document, tensors.stored)


def _nesting(spec: TreeSpec) -> str:
    try:
        return dump_spec(spec)
    except (UnsavableError, ValueError) as error:
        raise SavingError(
            f"the program cannot be saved because of {error}",
            hint="let the model take and return tuples, lists and dicts, or register the class "
            "with torch's pytree under a serialized_type_name",
        ) from error


def _note(vanished: tuple[str, int]) -> str:
    name, count = vanished
    return f"{count} {name}, which acts in training only, was saved as the identity"


def _node(node: fx.Node, sizes: SizeWriter) -> dict[str, Any]:
    try:
        described: dict[str, Any] = {
            "name": node.name,
            "op": node.op,
            "target": _target(node),
            "args": [encode(arg, _reference) for arg in node.args],
            "kwargs": {key: encode(value, _reference) for key, value in node.kwargs.items()},
            "value": describe_value(node.meta.get("val")),
        }
        if node.op == "placeholder":
            described["input"] = sizes.placeholder(node.meta.get("val"))
    except UnsavableError as error:
        raise SavingError(
            f"the program cannot be saved because of %{node.name}: {error} has no form in a file",
            where=node.meta.get("source"),
        ) from error
    if isinstance(node.meta.get("source"), str):
        described["source"] = node.meta["source"]
    return described


def _target(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    name = function_name(node.target)
    if name is None:
        raise UnsavableError(f"the function {node.target}")
    return name


def _reference(value: Any) -> dict[str, Any] | None:
    return {"node": value.name} if isinstance(value, fx.Node) else None
