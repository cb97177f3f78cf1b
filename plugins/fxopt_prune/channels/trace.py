"""A walk through a program that labels each dimension of each value with atoms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Program, is_aten, size_hint
from fxopt_prune.channels.atoms import Atoms, Labels, fixed

Dims = tuple[Labels, ...]
"""The labels of a tensor, dimension by dimension."""

Value = Dims | list[Any] | None
"""Those of a node: of a tensor, of several ones, or None for sizes and the like."""

Rule = Callable[["Call"], Value]
"""How labels pass a call."""

RuleOf = Callable[[Program, fx.Node], Rule | None]
"""The rule for a call; None where there is none."""


class UnclearError(Exception):
    """A rule cannot tell what happens here; all that comes in has to stay as it is."""


class Trace:
    """The labels of all values and weights of a program, as far as it was walked.

    Attributes:
        program: The program.
        atoms: All atoms of it.
        values: The labels of each node's value.
        weights: Those of each parameter or buffer, by its identity, with the tensor.
        barriers: Why what goes into a node has to stay, by node.
        inexact: Atoms whose removal does more than what zeros in their place would.
        taken: Atoms of weights along which they multiply what comes into a layer.
        made: Those along which they make what goes out.
        rule_of: Where its rules come from.
    """

    marking = False  # see heads.py

    def __init__(self, program: Program, rule_of: RuleOf) -> None:
        self.program = program
        self.rule_of = rule_of
        self.atoms = Atoms()
        self.values: dict[fx.Node, Value] = {}
        self.weights: dict[int, tuple[torch.Tensor, Dims]] = {}
        self.barriers: dict[fx.Node, str] = {}
        self.inexact: list[Labels] = []
        self.taken: list[Labels] = []
        self.made: list[Labels] = []

    def weight(self, tensor: torch.Tensor) -> Dims:
        """The labels of a parameter or buffer; the same ones wherever it is used."""
        if id(tensor) not in self.weights:
            dims = tuple(self.atoms.fresh(size) for size in tensor.shape)
            self.weights[id(tensor)] = (tensor, dims)
        return self.weights[id(tensor)][1]

    def couple(self, these: Labels, those: Labels, node: fx.Node) -> None:
        """Couples two dimensions that meet in ``node``.

        Raises:
            UnclearError: Their sizes do not fit.
        """
        if len(these) != len(those) and 1 not in (len(these), len(those)):
            raise UnclearError(f"sizes {len(these)} and {len(those)} meet")
        self.atoms.couple(these, those, f"fixed at {place(node)}")

    def fix(self, labels: Labels, node: fx.Node, why: str) -> None:
        """Lets a dimension stay as it is."""
        self.atoms.fix(labels, f"{why} at {place(node)}")

    def heads(self, dims: Dims) -> None:
        """Is told the dimensions over which a product of matrices is repeated."""

    def fix_all(self, value: Value, node: fx.Node, why: str) -> None:
        """Lets all dimensions of a value stay as they are."""
        for dims in value if isinstance(value, list) else [value]:
            for labels in dims or ():
                self.fix(labels, node, why)


def place(node: fx.Node) -> str:
    """A node for people: its name and where it comes from."""
    source = node.meta.get("source")
    return f"%{node.name} ({source})" if source else f"%{node.name}"


@dataclass(frozen=True)
class Call:
    """A call that a rule looks at.

    Attributes:
        trace: What is known so far; the labels of the call's arguments are.
        node: The call.
    """

    trace: Trace
    node: fx.Node

    @property
    def leaf(self) -> Any:
        """The module that is called."""
        return self.trace.program.leaf(self.node)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """All arguments by name, with defaults; for a module by position, from 0."""
        node = self.node
        if not is_aten(node.target):
            return {str(i): arg for i, arg in enumerate((*node.args, *node.kwargs.values()))}
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        given = {a.name: a.default_value for a in schema}
        given |= {a.name: value for a, value in zip(schema, node.args, strict=False)}
        return given | node.kwargs

    def dims(self, argument: Any) -> Dims:
        """The labels of an argument that is a tensor.

        Raises:
            UnclearError: It is none.
        """
        value = self.value(argument)
        if not isinstance(value, tuple):
            raise UnclearError("an argument is no tensor")
        return value

    def first(self) -> Dims:
        """The labels of the first argument."""
        return self.dims(next(iter(self.arguments.values())))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the result; where the batch is symbolic, that of the example."""
        return sizes_of(self.node.meta["val"])

    def value(self, argument: Any) -> Value:
        """The labels of any argument."""
        return self.trace.values.get(argument) if isinstance(argument, fx.Node) else None

    def couple(self, these: Labels, those: Labels) -> None:
        """Couples two dimensions that meet in this call."""
        self.trace.couple(these, those, self.node)

    def fix(self, labels: Labels, why: str) -> None:
        """Lets a dimension stay as it is."""
        self.trace.fix(labels, self.node, why)

    def layer(self, taken: Labels, made: Labels) -> None:
        """Notes along what a weight multiplies what comes in, and makes what goes out."""
        self.trace.taken.append(taken)
        self.trace.made.append(made)

    def inexact(self, labels: Labels) -> None:
        """Notes that what is computed of the others changes where one of these goes."""
        self.trace.inexact.append(labels)


def walk(program: Program, rule_of: RuleOf) -> Trace:
    """Labels all values of a program."""
    trace = Trace(program, rule_of)
    for node in program.graph.nodes:
        trace.values[node] = label(trace, node)
    return trace


def label(trace: Trace, node: fx.Node) -> Value:
    """The labels of what a node yields, from those of its arguments."""
    if node.op == "placeholder":
        return fixed_value(node.meta["val"])
    if node.op == "get_attr":
        return trace.weight(trace.program.tensor(node))
    if node.op == "output":
        return _barrier(trace, node, "an output of the model")
    if not _has_tensors(node):
        return None
    rule = trace.rule_of(trace.program, node)
    if rule is None:
        return _barrier(trace, node, f"{what(trace.program, node)} is not known")
    try:
        value = rule(Call(trace, node))
    except UnclearError as reason:
        return _barrier(trace, node, f"{what(trace.program, node)}: {reason}")
    fits = _fits(value, fixed_value(node.meta["val"]))
    return value if fits else _barrier(trace, node, "its sizes are not understood")


def _barrier(trace: Trace, node: fx.Node, why: str) -> Value:
    """All that goes in, and all that comes out, stays as it is."""
    if node.op != "output":
        trace.barriers[node] = why
    for argument in node.all_input_nodes:
        trace.fix_all(trace.values.get(argument), node, why)
    if node.op == "call_module":
        _fix_weights(trace, node, why)
    return fixed_value(node.meta.get("val"))


def _fix_weights(trace: Trace, node: fx.Node, why: str) -> None:
    """A layer that is not understood must find its weights as they were, shared ones too."""
    leaf = trace.program.leaf(node)
    for tensor in (*leaf.parameters(), *leaf.buffers()):
        trace.fix_all(trace.weight(tensor), node, why)


def what(program: Program, node: fx.Node) -> str:
    """What a node calls, for people."""
    if node.op == "call_module":
        return type(program.leaf(node)).__name__
    return str(node.target) if is_aten(node.target) else getattr(node.target, "__name__", "?")


def fixed_value(value: Any) -> Value:
    """The labels of a value of which nothing can go."""
    if isinstance(value, torch.Tensor):
        return tuple(fixed(size) for size in sizes_of(value))
    if isinstance(value, (tuple, list)):
        return [fixed_value(item) for item in value]
    return None


def sizes_of(value: torch.Tensor) -> tuple[int, ...]:
    """The sizes of a value; where one is symbolic, that of the example."""
    return tuple(size_hint(size) for size in value.shape)


def _has_tensors(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else [value]
    return any(isinstance(item, torch.Tensor) for item in values)


def _fits(value: Value, expected: Value) -> bool:
    """Whether there are as many labels as positions."""
    if isinstance(value, list) and isinstance(expected, list):
        return len(value) == len(expected) and all(map(_fits, value, expected))
    if isinstance(value, tuple) and isinstance(expected, tuple):
        return [len(labels) for labels in value] == [len(labels) for labels in expected]
    return value is None and expected is None


def module_tensors(leaf: nn.Module) -> dict[str, torch.Tensor]:
    """A leaf's parameters and buffers by name."""
    return {**dict(leaf.named_parameters()), **dict(leaf.named_buffers())}
