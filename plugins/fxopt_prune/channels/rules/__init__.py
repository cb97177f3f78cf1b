"""How labels pass each kind of call; one file a kind."""

from __future__ import annotations

from torch import fx

from fxopt.plugin import Program
from fxopt_prune.channels.rules import (
    joining,
    layers,
    moving,
    norms,
    products,
    recurrent,
    reducing,
    reshaping,
    spatial,
)
from fxopt_prune.channels.rules.pointwise import pointwise_rule
from fxopt_prune.channels.rules.registry import Changed, Smaller, named_rule, resize_of
from fxopt_prune.channels.trace import Rule


def rule_of(program: Program, node: fx.Node) -> Rule | None:
    """The rule for what a node calls; None where it is not known."""
    return named_rule(program, node) or pointwise_rule(program, node)


__all__ = [
    "Changed",
    "Smaller",
    "joining",
    "layers",
    "moving",
    "norms",
    "products",
    "recurrent",
    "reducing",
    "resize_of",
    "reshaping",
    "rule_of",
    "spatial",
]
