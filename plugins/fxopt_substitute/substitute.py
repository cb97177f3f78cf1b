"""The pass: cheaper functions in the place of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from fxopt.plugin import (
    Context,
    Lossy,
    Milder,
    Pass,
    PassInfo,
    PassResult,
    Program,
    Target,
)
from fxopt_substitute.activations import ACTIVATIONS, Activation
from fxopt_substitute.outputs import yields_output

Pair = tuple[Activation, Activation]


@dataclass(frozen=True)
class Substitute(Pass):
    """Replaces activation functions by cheaper ones that are nearly the same.

    The default replaces what has an exponential by what is linear in pieces, as MobileNetV3 does
    (Howard et al., "Searching for MobileNetV3", 2019). Others, such as ``gelu=relu``, want to be
    trained afterwards: ``substitute,distill``. What yields an output of the model stays, also
    where its values are only moved on the way, or change their dtype.

    For a convolution in two parts, depthwise and pointwise, see ``low_rank{method=separable}``.

    Attributes:
        activations: What becomes what, each as ``old=new``.
        share: How many of these calls are replaced, from 0 to 1: those first that change what they
            yield least, by calibration data where there are some, and else those that come first.
    """

    activations: tuple[str, ...] = ("silu=hardswish", "mish=hardswish", "sigmoid=hardsigmoid")
    share: float = 1.0

    info: ClassVar[PassInfo] = PassInfo(name="substitute", stage="structure", fidelity=Lossy())

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share} must be from 0 to 1")
        self._pairs()

    def inapplicable(self, program: Program, context: Context) -> str | None:
        """There is nothing to do where none of these functions is called."""
        names = ", ".join(text.partition("=")[0] for text in self.activations)
        return None if self._calls(program) else f"nothing calls {names}"

    def run(self, program: Program, context: Context) -> PassResult:
        """Replaces."""
        calls = self._calls(program)
        inner = {node: pair for node, pair in calls.items() if not yields_output(program, node)}
        order = list(inner)
        if context.calibration is not None and self.share < 1:
            changes = _changes(program, inner, context.calibration)
            order.sort(key=lambda node: changes[node])
        chosen = order[: round(self.share * len(order))]
        with program.edit() as edit:
            for node in (node for node in calls if node not in inner):
                edit.refuse(node, "it yields an output of the model")
            for node in chosen:
                new = inner[node][1]
                edit.replace(node, new.target, node.args[0], **new.arguments)
        return edit.result(f"{len(chosen)} of {len(calls)} activations", calls=len(chosen))

    def milder(self, program: Program, context: Context) -> Milder:
        """Fewer and fewer are replaced."""
        shares = (0.8, 0.6, 0.4, 0.2)
        return Milder([replace(self, share=share) for share in shares if share < self.share])

    def space(self, program: Program, target: Target) -> dict[str, Sequence[Any]]:
        """How many are replaced."""
        return {"share": [0.25, 0.5, 0.75, 1.0]}

    def _pairs(self) -> list[Pair]:
        pairs = []
        for text in self.activations:
            old, _, new = text.partition("=")
            if old not in ACTIVATIONS or new not in ACTIVATIONS or old == new:
                raise ValueError(
                    f"activations: {text!r} is not of the form old=new, with two of "
                    f"{', '.join(ACTIVATIONS)}"
                )
            pairs.append((ACTIVATIONS[old], ACTIVATIONS[new]))
        return pairs

    def _calls(self, program: Program) -> dict[fx.Node, Pair]:
        """What can be replaced, in the order of the program."""
        pairs = self._pairs()
        found = {}
        for node in filter(_takes_floats, program.nodes):
            pair = next((pair for pair in pairs if pair[0].is_called_by(node)), None)
            if pair is not None:
                found[node] = pair
        return found


def _takes_floats(node: fx.Node) -> bool:
    """Some functions take integers too, and others do not."""
    value = node.all_input_nodes[0].meta.get("val") if node.all_input_nodes else None
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _changes(
    program: Program, calls: dict[fx.Node, Pair], batches: Iterable[list[Any]]
) -> dict[fx.Node, float]:
    """How much of the squared values of each call would change."""
    walk = _Walk(program, calls)
    with torch.no_grad():
        for flat in batches:
            walk.run(*flat)
    return {node: lost / max(total, 1e-30) for node, (lost, total) in walk.sums.items()}


class _Walk(fx.Interpreter):
    def __init__(self, program: Program, calls: dict[fx.Node, Pair]) -> None:
        super().__init__(program.module)
        self._calls = calls
        self.sums = dict.fromkeys(calls, (0.0, 0.0))

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._calls:
            (x, *_), _ = self.fetch_args_kwargs_from_env(n)
            lost, total = self.sums[n]
            change = self._calls[n][1](x) - value
            self.sums[n] = (lost + _square(change), total + _square(value))
        return value


def _square(value: torch.Tensor) -> float:
    return float(value.double().square().sum())
