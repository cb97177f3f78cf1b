"""The pass: removes the channels and heads that matter least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch

from fxopt.plugin import (
    Context,
    Edit,
    Lossy,
    Milder,
    Pass,
    PassError,
    PassInfo,
    PassResult,
    Program,
    Target,
    check_names,
    is_named,
)
from fxopt_prune.between import train_between
from fxopt_prune.channels import Group, Structure, find_groups
from fxopt_prune.energies import all_taken, takes_channels
from fxopt_prune.importance import Importance, goes_by_data, scores_of, seen
from fxopt_prune.ratios import format_ratios, parse_ratios, step_ratio
from fxopt_prune.reconstruct import Rows, reconstruct
from fxopt_prune.select import Amounts, Scope, choose, layer_names, preferred
from fxopt_prune.shrink import remove
from fxopt_prune.work import works_of


@dataclass
class _Removed:
    """What was done, in one step or in all.

    Attributes:
        units: How many went.
        total: Of how many that there were at first.
        groups: Of groups.
        by_group: How many went of each, by its name; the halves of a chunk have one.
        fitted: Layers that were fitted, in the last step.
        unseen: Groups that weights decided on, since no data tell what is taken of them.
    """

    units: int = 0
    total: int = 0
    groups: int = 0
    by_group: Counter[str] = field(default_factory=Counter)
    fitted: int = 0
    unseen: int = 0

    def add(self, later: _Removed) -> None:
        """What the next step has done."""
        self.units += later.units
        self.total, self.groups = self.total or later.total, self.groups or later.groups
        self.unseen = max(self.unseen, later.unseen)
        self.by_group.update(later.by_group)
        self.fitted = later.fitted


@dataclass(frozen=True)
class Prune(Pass):
    """Removes channels, attention heads and recurrent units for good: weights get smaller.

    What can only be removed together is found by following each position through the whole
    program (the dependency graph of Fang et al., "DepGraph: Towards Any Structural Pruning", 2023,
    per position). Whatever passes an operation that is not understood stays, and is reported.

    Attributes:
        ratio: The share of units that go, from 0 to less than 1.
        importance: Which units go: those with the smallest weights (``magnitude``), that add least
            to what comes behind on calibration data (``activation``), by the gradient of the loss
            (``gradient``, ``taylor``; of ``fxopt.optimize(training=)`` if that has labels, else a
            measure of how much the outputs change), or any (``random``). ``auto`` is
            ``activation`` where there are calibration data, else ``magnitude``.
        scope: Whether each layer loses its share (``layer``), those that matter least anywhere go
            (``global``), or those that matter least for the multiply-adds that they take
            (``work``): then ``ratio`` is the share of the layers' multiply-adds that goes, and
            narrow layers that many others take lose less than wide ones that one takes.
        layers: Other ratios for the channels that single layers yield: ``name=ratio``, where ``*``
            in the name of a layer or weight matches any text. Layers that are bound together have
            one ratio, the first that fits. They have no part in the other scopes.
        round_to: Channels left in a layer are a multiple of so many, where there are at least
            twice as many; 0 is what suits the target and the size of the layer.
        reconstruct: Whether the layers that are left are fitted to the outputs that they had, by
            least squares on calibration data if there are some; needs no labels. Single weights
            that were zero do not stay so.
        samples: How many calibration samples that uses at most, rounded up to whole batches.
        steps: In how many steps it is done, each of which removes the same share of what is left.
            Between them, the program is trained as ``fxopt.optimize(training=)`` says, if that has
            labels: what matters is judged anew after each (Han et al., "Learning both Weights and
            Connections for Efficient Neural Networks", 2015). Weights that are zero by then stay
            zero in training.
        skip: Names of layers whose own channels stay, those that they yield; what they take may
            go where nothing else keeps it. ``*`` matches any text.
    """

    ratio: float = 0.3
    importance: Importance = "auto"
    scope: Scope = "layer"
    layers: tuple[str, ...] = ()
    round_to: int = 0
    reconstruct: bool = True
    samples: int = 256
    steps: int = 1
    skip: tuple[str, ...] = ()

    info: ClassVar[PassInfo] = PassInfo(name="prune", stage="structure", fidelity=Lossy())

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio} must be at least 0 and less than 1")
        if self.round_to < 0:
            raise ValueError(f"round_to={self.round_to} must not be negative")
        for name, count in (("samples", self.samples), ("steps", self.steps)):
            if count < 1:
                raise ValueError(f"{name}={count} must be at least 1")
        self._ratios()

    def inapplicable(self, program: Program, context: Context) -> str | None:
        """There is nothing to do where nothing can be removed."""
        groups = [group for group in find_groups(program).groups if len(group) > 1]
        return None if groups else "no channel can be removed without changing what it stands for"

    def run(self, program: Program, context: Context) -> PassResult:
        """Chooses, removes, and fits what is left.

        Raises:
            CalibrationError: Data are needed, and there are none.
            PassError: A name matches no layer, or is given a ratio and no channels of it can go.
        """
        edit, before = program.edit(), program.weight_bytes()
        every = _Removed()
        for step, item in enumerate(self._each_step(), start=1):
            found = item._remove(program, edit, context, first=step == 1)
            every.add(found)
            if step < self.steps and found.units:
                train_between(program, context, f"prune_step_{step}", key=repr(self))
        return edit.result(
            _summary(every, before, program.weight_bytes()),
            units=every.units,
            groups=every.groups,
            fitted=every.fitted,
            unseen=every.unseen,
            removed=dict(every.by_group),
        )

    def _each_step(self) -> list[Prune]:
        """What each step does; only the last one has to meet multiples."""
        if self.steps == 1:
            return [self]
        share = self._powered(1 / self.steps)
        return [replace(share, round_to=1)] * (self.steps - 1) + [share]

    def _powered(self, exponent: float) -> Prune:
        """A step of which so many as the inverse of ``exponent`` remove the whole share."""
        layers = {name: step_ratio(ratio, exponent) for name, ratio in self._ratios().items()}
        ratio = step_ratio(self.ratio, exponent)
        return replace(self, ratio=ratio, layers=format_ratios(layers), steps=1)

    def _remove(self, program: Program, edit: Edit, context: Context, first: bool) -> _Removed:
        structure = find_groups(program)
        if first:
            self._check_names(program, structure.groups)
        allowed = [i for i, group in enumerate(structure.groups) if not self._skipped(group)]
        groups = [structure.groups[i] for i in allowed]
        unseen = self._unseen(program, groups, context)
        all_scores = scores_of(program, structure, context, self.importance)
        multiples = (self.round_to,) if self.round_to else preferred(context.target)
        amounts = Amounts(self.ratio, self._ratios(), multiples)
        scores = [all_scores[i] for i in allowed]
        works = works_of(program) if self.scope == "work" else {}
        removed = choose(groups, scores, amounts, self.scope, works)
        units = [unit for chosen in removed.values() for unit in chosen]
        original, rows = program.clone(), _rows(program, structure, units)
        done = False
        with edit:
            for node, reason in structure.barriers.items() if first else ():
                edit.refuse(node, reason)
            if units:
                done = remove(program, edit, structure, units, f"{len(units)} units removed")
        fitted = 0
        if done and self.reconstruct and context.calibration is not None:
            fitted = reconstruct(original, program, rows, context, self.samples)
        total = sum(map(len, groups))
        if not done:
            return _Removed(total=total, groups=len(groups))
        by_group = Counter(groups[i].name for i, chosen in removed.items() for _ in chosen)
        return _Removed(len(units), total, len(groups), by_group, fitted, unseen)

    def _unseen(self, program: Program, groups: Sequence[Group], context: Context) -> int:
        """How many groups data should decide on, and cannot."""
        if not goes_by_data(self.importance, context):
            return 0
        taken = all_taken(program)
        return sum(not seen(group, taken) for group in groups)

    def milder(self, program: Program, context: Context) -> Milder:
        """Less and less is removed."""
        shares = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
        return Milder([self._times(share) for share in shares])

    def space(self, program: Program, target: Target) -> dict[str, Sequence[Any]]:
        """How much to remove, and of what."""
        return {"ratio": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "scope": ["layer", "work"]}

    def _times(self, share: float) -> Prune:
        layers = {name: round(ratio * share, 4) for name, ratio in self._ratios().items()}
        return replace(self, ratio=self.ratio * share, layers=format_ratios(layers))

    def _ratios(self) -> dict[str, float]:
        """The ratios of single layers, by pattern."""
        return parse_ratios(self.layers)

    def _check_names(self, program: Program, groups: Sequence[Group]) -> None:
        weights = {name for name, _ in program.module.named_parameters()}
        every = sorted(weights | {name.rpartition(".")[0] for name in weights} - {""})
        check_names(self._ratios(), every, "layers")
        check_names(self.skip, every, "skip")
        own = [name for group in groups for name in layer_names(group)]
        for pattern, ratio in self._ratios().items():
            if ratio and not any(is_named(name, [pattern]) for name in own):
                raise PassError(
                    f"layers gives {pattern!r} a ratio, but no channels of {pattern!r} can go",
                    hint="name the layers that make the channels which it takes",
                )

    def _skipped(self, group: Group) -> bool:
        return any(is_named(name, self.skip) for name in layer_names(group))


def _rows(program: Program, structure: Structure, units: Sequence[int]) -> Rows:
    """The outputs of layers that are left."""
    gone = structure.gone(units)
    found = {}
    for node in program.nodes:
        leaf: Any = program.leaf(node) if node.op == "call_module" else None
        if leaf is not None and takes_channels(leaf) and id(leaf.weight) in structure.trace.weights:
            outputs = structure.trace.weights[id(leaf.weight)][1][0]
            found[str(node.target)] = torch.from_numpy(np.flatnonzero(~gone[outputs]))
    return found


def _summary(removed: _Removed, before: int, after: int) -> str:
    if not removed.units:
        return "nothing to remove"
    fit = f", {removed.fitted} layers fitted" if removed.fitted else ""
    if removed.unseen:
        fit += f", {removed.unseen} groups by weights: no data tell what is taken of them"
    return (
        f"{removed.units} of {removed.total} units in {len(removed.by_group)} groups, "
        f"{100 * (1 - after / max(before, 1)):.0f} % of the weights{fit}"
    )
