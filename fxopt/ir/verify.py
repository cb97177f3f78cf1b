"""The invariants of a program, as a table of rules, and the check of all of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxopt.errors import ProgramError
from fxopt.ir.leaf import is_leaf
from fxopt.ir.ops import is_functional, is_size_arithmetic
from fxopt.ir.shapes import attribute

if TYPE_CHECKING:
    from fxopt.ir.program import Program

Rule = Callable[["Program"], Iterator[str]]

_KINDS = {"placeholder", "get_attr", "call_module", "call_function", "output"}


def node_kinds(program: Program) -> Iterator[str]:
    """A node is a placeholder, get_attr, call_module, call_function or output."""
    for node in program.graph.nodes:
        if node.op not in _KINDS:
            yield f"%{node.name} is a {node.op}"


def well_formed(program: Program) -> Iterator[str]:
    """Inputs come first, and arguments are nodes of this graph that come before their users."""
    seen: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" and any(other.op != "placeholder" for other in seen):
            yield f"the input %{node.name} comes after other nodes"
        for arg in node.all_input_nodes:
            if arg.graph is not program.graph or arg not in seen:
                yield f"%{node.name} uses %{arg.name}, which does not come before it"
        seen.add(node)


def functions_are_functional(program: Program) -> Iterator[str]:
    """A call_function calls an operator overload that writes to nothing, or size arithmetic."""
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if isinstance(node.target, torch._ops.OpOverload):
            if not is_functional(node.target):
                yield f"%{node.name} works in place: {node.target}"
        elif not is_size_arithmetic(node.target):
            yield f"%{node.name} calls {node.target}, which is no operator overload"
        elif node.target is not operator.getitem and any(map(_is_tensor, node.all_input_nodes)):
            yield f"%{node.name} calls {node.target}, which is for sizes, on a tensor"


def modules_are_leaves(program: Program) -> Iterator[str]:
    """A call_module calls a standard torch.nn leaf, or a LeafModule that a plugin brought."""
    for node in program.graph.nodes:
        if node.op != "call_module":
            continue
        try:
            leaf = program.leaf(node)
        except AttributeError:
            yield f"%{node.name} calls the module {node.target}, which is missing"
            continue
        if not is_leaf(leaf):
            yield f"%{node.name} calls {node.target}, a {type(leaf).__name__}, which is no leaf"


def attributes_are_tensors(program: Program) -> Iterator[str]:
    """A get_attr reads a tensor that exists."""
    for node in program.graph.nodes:
        if node.op != "get_attr":
            continue
        try:
            value = attribute(program.module, str(node.target))
        except AttributeError:
            yield f"%{node.name} reads {node.target}, which is missing"
            continue
        if not isinstance(value, torch.Tensor):
            yield f"%{node.name} reads {node.target}, a {type(value).__name__}, not a tensor"


def values_are_known(program: Program) -> Iterator[str]:
    """Every node but the output carries ``meta["val"]``."""
    for node in program.graph.nodes:
        if node.op != "output" and "val" not in node.meta:
            yield f'%{node.name} has no meta["val"]'


def signature_fits(program: Program) -> Iterator[str]:
    """There is a placeholder per input leaf, and a flat tuple with an item per output leaf."""
    inputs, expected = len(program.inputs), program.signature.in_spec.num_leaves
    if inputs != expected:
        yield f"{inputs} placeholders for {expected} inputs"
    outputs = program.output.args[0]
    if not isinstance(outputs, (tuple, list)):
        yield f"the output is {outputs}, not a flat tuple"
    elif len(outputs) != program.signature.out_spec.num_leaves:
        yield f"{len(outputs)} outputs for {program.signature.out_spec.num_leaves} in the signature"


def nothing_unreferenced(program: Program) -> Iterator[str]:
    """Every parameter belongs to a module or attribute that some node uses."""
    used = {str(n.target) for n in program.graph.nodes if n.op in ("call_module", "get_attr")}
    for name, _ in program.module.named_parameters(remove_duplicate=False):
        owner = name.rpartition(".")[0]
        owners = {owner, *(owner[:i] for i, char in enumerate(owner) if char == ".")}
        if name not in used and not owners & used:
            yield f"the parameter {name} is used by no node"


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


RULES: tuple[Rule, ...] = (
    node_kinds,
    well_formed,
    functions_are_functional,
    modules_are_leaves,
    attributes_are_tensors,
    values_are_known,
    signature_fits,
    nothing_unreferenced,
)


def verify_program(program: Program) -> None:
    """Checks every rule.

    Raises:
        ProgramError: Lists each violation.
    """
    violations = [violation for rule in RULES for violation in rule(program)]
    if violations:
        raise ProgramError(violations)
