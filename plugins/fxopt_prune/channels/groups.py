"""Groups: units that can be removed, each with all that has to go with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from fxopt.plugin import Program
from fxopt_prune.channels.atoms import FIXED, Classes, Labels
from fxopt_prune.channels.rules import rule_of
from fxopt_prune.channels.trace import Trace, walk


@dataclass(frozen=True)
class Side:
    """One dimension of a weight that loses positions with the units of a group.

    Attributes:
        tensor: The weight, a parameter or buffer.
        name: Its first qualified name.
        dim: The dimension.
        positions: Those of each unit, of shape (units, positions of each).
        takes: Whether the weight does nothing along this dimension but multiply what layers take;
            along others it makes channels, or scales and shifts them.
    """

    tensor: torch.Tensor
    name: str
    dim: int
    positions: Labels
    takes: bool


@dataclass(frozen=True)
class Group:
    """Units that are alike: each takes as many positions of the same weights.

    Attributes:
        name: After the weight that makes the channels.
        units: Their classes, in the order of their first position.
        sides: The weights concerned.
        exact: Whether zeros in a unit's place do the same as its removal.
    """

    name: str
    units: Labels
    sides: tuple[Side, ...]
    exact: bool

    def __len__(self) -> int:
        return len(self.units)


@dataclass(frozen=True)
class Structure:
    """What of a program can be removed.

    Attributes:
        trace: The labels of all values and weights.
        classes: Which atoms go together.
        groups: The units, grouped.
    """

    trace: Trace
    classes: Classes
    groups: tuple[Group, ...]

    @property
    def barriers(self) -> dict[fx.Node, str]:
        """Calls at which nothing can be removed, and why."""
        return self.trace.barriers

    def gone(self, units: Iterable[int]) -> np.ndarray:
        """Which atoms are removed with some units, as a mask by atom."""
        return np.isin(self.classes.of_atom, np.fromiter(units, dtype=np.int64))


def find_groups(program: Program) -> Structure:
    """Finds which slices of which weights can only be removed together.

    Follows the idea of dependency graphs (Fang et al., "DepGraph: Towards Any Structural Pruning",
    2023, https://arxiv.org/abs/2301.12900), but for single positions instead of whole layers: what
    is split, shuffled or concatenated is known exactly, and what is not known stays.
    """
    trace = walk(program, rule_of)
    classes = trace.atoms.classes()
    names = _names(program)
    inexact = _classes_of(classes, trace.inexact)
    taking = _only_taking(trace)
    alike = _alike(_places(trace, classes))
    groups = [_group(units, trace, names, inexact, taking) for units in alike]
    return Structure(trace, classes, tuple(groups))


Places = dict[tuple[int, int], list[int]]
"""Positions by weight (its identity) and dimension."""


def _places(trace: Trace, classes: Classes) -> dict[int, Places]:
    """All positions of each unit."""
    places: dict[int, Places] = defaultdict(lambda: defaultdict(list))
    for key, (_, dims) in trace.weights.items():
        for dim, labels in enumerate(dims):
            units = classes.of_atom[labels]
            for position in np.flatnonzero(units != FIXED):
                places[int(units[position])][key, dim].append(int(position))
    return places


def _alike(places: dict[int, Places]) -> list[dict[int, Places]]:
    """Units that have as many positions on the same sides."""
    found: dict[object, dict[int, Places]] = defaultdict(dict)
    for unit, sides in places.items():
        kind = tuple((side, len(positions)) for side, positions in sides.items())
        found[kind][unit] = sides
    return list(found.values())


def _group(
    alike: dict[int, Places],
    trace: Trace,
    names: dict[int, str],
    inexact: set[int],
    taking: set[int],
) -> Group:
    """Units that are alike, as a group."""
    first = next(iter(alike.values()))
    sides = []
    for key, dim in first:
        positions = np.array([places[key, dim] for places in alike.values()], dtype=np.int64)
        tensor, labels = trace.weights[key]
        takes = taking.issuperset(labels[dim][positions].flat)
        sides.append(Side(tensor, names.get(key, ""), dim, positions, takes))
    units = np.array(list(alike), dtype=np.int64)
    return Group(_title(sides), units, tuple(sides), exact=not inexact.intersection(alike))


def _title(sides: list[Side]) -> str:
    """The weight that makes the channels: the first whose rows they are."""
    making = [side for side in sides if not side.takes] or sides
    rows = [side for side in making if side.dim == 0 and side.tensor.dim() > 1]
    return (rows or making)[0].name


def _only_taking(trace: Trace) -> set[int]:
    """Atoms of weights along which layers take something, and none makes anything.

    A tied embedding does both.
    """
    taken, made = (
        {int(a) for labels in each for a in labels} for each in (trace.taken, trace.made)
    )
    return taken - made


def _names(program: Program) -> dict[int, str]:
    tensors = [*program.module.named_parameters(), *program.module.named_buffers()]
    return {id(tensor): name for name, tensor in reversed(tensors)}


def _classes_of(classes: Classes, labels: list[Labels]) -> set[int]:
    if not labels:
        return set()
    return set(np.unique(classes.of_atom[np.concatenate(labels)]).tolist())
