"""The pass: factorizes the layers for which that pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import fx, nn

from fxopt.plugin import (
    Context,
    Edit,
    Lossy,
    Milder,
    Pass,
    PassInfo,
    PassResult,
    Program,
    Target,
    check_names,
    is_named,
)
from fxopt_low_rank.factors import METHODS, Basis, Method, Stages, composed
from fxopt_low_rank.layers import Geometry, made, refusal
from fxopt_low_rank.prices import Cost, price_of
from fxopt_low_rank.ranks import Price, Thin, largest_rank, smallest_rank, suits, thin_layers
from fxopt_low_rank.statistics import Statistics, gather

_WORTH = 0.9  # a layer that keeps more of its multiply-adds only gains the overhead of another call


@dataclass(frozen=True)
class LowRank(Pass):
    """Replaces linear layers and convolutions by two to four thinner ones.

    With calibration data, what counts is the error of the outputs on such inputs, and biases make
    up for the shift of their mean; without, the error of the weights.

    Attributes:
        keep: The share of what a layer costs that stays, above 0 and at most 0.9.
        cost: What that is: ``latency``, as a roofline predicts it for the target and the size of
            the examples, which spares layers that are small; or multiply-adds (``work``).
        energy: If it is not 0, the rank is the smallest that keeps this share of the squared
            outputs (by the covariance of the inputs), and ``keep`` is what that may cost at most:
            other layers stay.
        method: Of convolutions: fewer outputs that are mixed (``svd``; that of linear layers too),
            a column and a row (``spatial``), both sides and a core (``tucker``), a sum of outer
            products (``cp``), kernels for each input and their mixture, which is a depthwise
            separable layer (``separable``); or ``auto``: of the first three the one that errs
            least.
        weighted: Whether calibration data are used, where there are some.
        round_to: Ranks are a multiple of so many, where they are at least twice as large.
        skip: Names of layers that stay; ``*`` matches any text.
    """

    keep: float = 0.5
    cost: Cost = "latency"
    energy: float = 0.0
    method: Method | Literal["auto"] = "auto"
    weighted: bool = True
    round_to: int = 8
    skip: tuple[str, ...] = ()

    info: ClassVar[PassInfo] = PassInfo(
        name="low_rank", stage="structure", fidelity=Lossy(), after=("prune",)
    )

    def __post_init__(self) -> None:
        if not 0 < self.keep <= _WORTH:
            raise ValueError(f"keep={self.keep} must be above 0 and at most {_WORTH}")
        if not 0 <= self.energy < 1:
            raise ValueError(f"energy={self.energy} must be at least 0 and less than 1")
        if self.round_to < 1:
            raise ValueError(f"round_to={self.round_to} must be at least 1")

    def inapplicable(self, program: Program, context: Context) -> str | None:
        """There is nothing to do without a linear layer or convolution."""
        return None if _layers(program) else "there is no linear layer and no convolution"

    def run(self, program: Program, context: Context) -> PassResult:
        """Factorizes.

        Raises:
            PassError: ``skip`` matches no layer.
        """
        layers = _layers(program)
        check_names(self.skip, [str(node.target) for node in layers], "skip")
        refused = {n: why for n in layers if (why := refusal(program, n)) is not None}
        taken = [n for n in layers if n not in refused and not is_named(str(n.target), self.skip)]
        known = self._statistics(program, context, taken)
        before = program.weight_bytes()
        ranks: dict[str, int] = {}
        with program.edit() as edit:
            for node, reason in refused.items():
                edit.refuse(node, reason)
            for done, node in enumerate(taken, start=1):
                context.progress(f"factorizing: {done} of {len(taken)} layers")
                price = price_of(self.cost, node, context.target)
                self._factorize(program, edit, node, price, known.get(node), ranks)
        gone = 100 * (1 - program.weight_bytes() / max(before, 1))
        told = f"{len(ranks)} of {len(layers)} layers, {gone:.0f} % of the weights"
        return edit.result(told if ranks else "nothing pays", ranks=ranks)

    def milder(self, program: Program, context: Context) -> Milder:
        """More and more of what layers cost stays, or of the squared outputs where they decide."""
        if self.energy:  # a larger keep would only let further layers lose as much
            energies = [1 - (1 - self.energy) / 2**halved for halved in range(1, 7)]
            return Milder([replace(self, energy=energy) for energy in energies if energy < 1])
        shares = [share for share in (0.6, 0.7, 0.8, 0.9) if share > self.keep]
        return Milder([replace(self, keep=share) for share in shares])

    def space(self, program: Program, target: Target) -> dict[str, Sequence[Any]]:
        """How much stays, and whether convolutions become depthwise separable ones."""
        space: dict[str, Sequence[Any]] = {"keep": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}
        leaves: list[Any] = [program.leaf(node) for node in _layers(program)]
        if any(suits("separable", tuple(leaf.weight.shape)) for leaf in leaves):
            space["method"] = ["auto", "separable"]
        return space

    def _statistics(
        self, program: Program, context: Context, layers: list[fx.Node]
    ) -> dict[fx.Node, Statistics]:
        if not self.weighted or context.calibration is None:
            return {}
        return gather(program, layers, context.calibration)

    def _factorize(
        self,
        program: Program,
        edit: Edit,
        node: fx.Node,
        price: Price,
        known: Statistics | None,
        ranks: dict[str, int],
    ) -> None:
        """Puts thinner layers in the place of one, or says why not."""
        leaf: Any = program.leaf(node)
        geometry, weight = Geometry.of(leaf), leaf.weight.detach().double()
        basis = _basis(weight, known)
        found = self._best(weight, basis, geometry.stride, price)
        if found is None:
            edit.refuse(node, f"no rank keeps less than {self.keep:g} of its {self.cost}")
            return
        stages, rank = found
        bias = _bias(leaf, weight, composed(stages), known)
        value = node.args[0]
        *thin, last = made(leaf, geometry, stages, bias)
        if edit.exhausted:
            return
        for module in thin:
            value = edit.call(module, value, before=node)
        edit.replace(node, last, value)
        ranks[str(node.target)] = rank

    def _best(
        self, weight: torch.Tensor, basis: Basis, strides: Sequence[int], price: Price
    ) -> tuple[Stages, int] | None:
        """The factorization that errs least of those that cost little enough."""
        methods: Sequence[Method] = ("svd", "spatial", "tucker")
        if self.method != "auto":
            methods = (self.method,) if suits(self.method, weight.shape) else ("svd",)
        tried = []
        for method in (m for m in methods if suits(m, weight.shape)):
            rank = self._rank(method, weight, basis, strides, price)
            if rank:
                stages = METHODS[method](weight, rank, basis)
                tried.append((_error(weight, stages, basis), stages, rank))
        best = min(tried, key=lambda each: each[0], default=None)
        return None if best is None else (best[1], best[2])

    def _rank(
        self,
        method: Method,
        weight: torch.Tensor,
        basis: Basis,
        strides: Sequence[int],
        price: Price,
    ) -> int:
        """What ``keep`` and ``energy`` say; 0 where it does not pay."""
        shape = list(weight.shape)
        limit = self.keep * price([Thin(prod(shape), shape[0])])
        most = largest_rank(method, shape, strides, limit, self.round_to, price)
        if not self.energy or not most:
            return most

        def enough(rank: int) -> bool:
            stages = METHODS[method](weight, rank, basis)
            return _error(weight, stages, basis) <= 1 - self.energy

        rank = smallest_rank(enough, most)
        rank = (
            min(most, -(-rank // self.round_to) * self.round_to) if rank > self.round_to else rank
        )
        affordable = price(thin_layers(method, shape, strides, rank)) <= limit
        return rank if enough(rank) and affordable else 0


def _layers(program: Program) -> list[fx.Node]:
    return list(program.find(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))


def _basis(weight: torch.Tensor, known: Statistics | None) -> Basis:
    if known is not None:
        return known.inputs.covariance, known.outputs.covariance
    flat = weight.flatten(1)
    return torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device), flat @ flat.T


def _error(weight: torch.Tensor, stages: Stages, basis: Basis) -> float:
    """The share of the squared outputs that is lost, if neighbours in space were independent."""
    lost = weight - composed(stages)
    energy = [torch.einsum("oi...,ij,oj...->", w, basis[0], w) for w in (lost, weight)]
    return float(energy[0] / energy[1].clamp(min=1e-30))


def _bias(
    leaf: Any, weight: torch.Tensor, after: torch.Tensor, known: Statistics | None
) -> torch.Tensor | None:
    """The bias, with what makes up for the shift of the outputs' mean."""
    bias = None if leaf.bias is None else leaf.bias.detach().double()
    if known is None:
        return bias
    shift = torch.einsum("oi...,i->o", weight - after, known.inputs.mean)
    return shift if bias is None else bias + shift
