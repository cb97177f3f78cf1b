"""The tables of rules: how labels pass a call, and what of the call changes when some go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from fxopt.plugin import Program
from fxopt_prune.channels.atoms import Labels
from fxopt_prune.channels.trace import Call, Rule

Count = Callable[[Labels], int]
"""How many positions of a dimension are left."""


@dataclass(frozen=True)
class Smaller:
    """A call whose values have lost positions.

    Attributes:
        call: The call, with the labels of before.
        stays: Whether each position of a dimension is left.
    """

    call: Call
    stays: Callable[[Labels], Any]

    def count(self, labels: Labels) -> int:
        """How many positions of a dimension are left."""
        return int(self.stays(labels).sum())

    def shrinks(self, labels: Labels) -> bool:
        """Whether positions of a dimension go."""
        return self.count(labels) < len(labels)


@dataclass(frozen=True)
class Changed:
    """What a call becomes: its operator and its arguments."""

    target: Any
    args: tuple[Any, ...]


Resize = Callable[[Smaller], Changed | None]
"""What a call becomes when positions go; None where it stays as it is."""

_RULES: dict[object, Rule] = {}
_RESIZES: dict[object, Resize] = {}


def rule(*targets: object) -> Callable[[Rule], Rule]:
    """Registers how labels pass a call of some operators, functions or modules."""

    def register(function: Rule) -> Rule:
        _RULES.update(dict.fromkeys(targets, function))
        return function

    return register


def resize(*targets: object) -> Callable[[Resize], Resize]:
    """Registers what becomes of such calls."""

    def register(function: Resize) -> Resize:
        _RESIZES.update(dict.fromkeys(targets, function))
        return function

    return register


def named_rule(program: Program, node: fx.Node) -> Rule | None:
    """The rule that is registered for what ``node`` calls; subclasses of modules have none."""
    return _RULES.get(_key(program, node))


def resize_of(program: Program, node: fx.Node) -> Resize | None:
    """What changes a call of such a node, where something has to."""
    return _RESIZES.get(_key(program, node))


def _key(program: Program, node: fx.Node) -> object:
    if node.op != "call_module":
        return node.target
    leaf: nn.Module = program.leaf(node)
    hooked = leaf._forward_hooks or leaf._forward_pre_hooks  # they may do anything
    return None if hooked else type(leaf)
