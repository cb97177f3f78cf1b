"""The pass ``sparsify``: single weights become zero; shapes stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import mul
from typing import Any, ClassVar, Literal

import torch
from torch import nn

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
from fxopt_prune.between import train_between
from fxopt_prune.ratios import format_ratios, own_ratio, parse_ratios, step_ratio
from fxopt_prune.saliency import Saliency, Scores, Weights, saliencies

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Sparsify(Pass):
    """Sets the weights to zero that matter least.

    Kernels that gain by it are rare, and where nothing gets faster the pass is rolled back like any
    lossy one; ``finetune`` and ``distill`` keep the zeros.

    Attributes:
        ratio: The share of weights that become zero, from 0 to less than 1, where neither a
            threshold nor a pattern says how many.
        threshold: If it is not 0, weights of a smaller magnitude become zero instead of a share.
            It is one for all layers.
        pattern: ``any``, or ``n:m``: of m weights in a row along the inputs, the n that matter
            most stay, such as ``2:4`` (Mishra et al., "Accelerating Sparse Deep Neural Networks",
            2021). What is left over at the end of a row stays.
        importance: The ``magnitude`` of a weight, or that times the norm of what it multiplies on
            calibration data, among the weights of one output (``activation``: Sun et al., "A
            Simple and Effective Pruning Approach for Large Language Models", 2024; convolutions
            with groups by magnitude); the gradient of the loss in a weight, or that times the
            weight (``gradient``, ``taylor``: Molchanov et al., "Importance Estimation for Neural
            Network Pruning", 2019; of what, see ``prune``); or chance (``random``).
        scope: Whether each layer loses its share, or all together (``global``).
        layers: Other ratios for single layers: ``name=ratio``, where ``*`` in the name of a layer
            matches any text; the first that fits counts. They have no part in ``scope=global``.
        steps: In how many steps it is done, each of which takes the same share of what is left.
            Between them, the program is trained as ``fxopt.optimize(training=)`` says, if that has
            labels; what is zero stays zero (Han et al., "Learning both Weights and Connections for
            Efficient Neural Networks", 2015).
        skip: Names of layers that stay; ``*`` matches any text.
    """

    ratio: float = 0.5
    threshold: float = 0.0
    pattern: str = "any"
    importance: Saliency = "magnitude"
    scope: Literal["layer", "global"] = "layer"
    layers: tuple[str, ...] = ()
    steps: int = 1
    skip: tuple[str, ...] = ()

    info: ClassVar[PassInfo] = PassInfo(
        name="sparsify", stage="structure", fidelity=Lossy(), after=("prune", "low_rank")
    )

    def __post_init__(self) -> None:
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio={self.ratio} must be at least 0 and less than 1")
        if self.threshold < 0:
            raise ValueError(f"threshold={self.threshold} must not be negative")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        parse_ratios(self.layers)
        if (self.layers or self.steps > 1) and (self.threshold or self.pattern != "any"):
            raise ValueError(
                "layers= and steps= are of ratios: with them there must be "
                "neither threshold nor pattern"
            )
        if self.threshold and self.importance != "magnitude":
            raise ValueError("threshold= is of magnitudes: importance must be magnitude with it")
        if self.pattern != "any":
            few, many = self._pattern
            if not 0 < few < many:
                raise ValueError(f"pattern={self.pattern} must be n:m with 0 < n < m")
            if self.threshold or self.scope != "layer":
                raise ValueError(
                    f"pattern={self.pattern} says how many weights stay in each row: "
                    "threshold must be 0 and scope must be layer with it"
                )

    def inapplicable(self, program: Program, context: Context) -> str | None:
        """There is nothing to do without a linear layer or convolution."""
        found = any(program.find(*_LAYERS))
        return None if found else "there is no linear layer and no convolution"

    def run(self, program: Program, context: Context) -> PassResult:
        """Finds what matters least, and sets it to zero.

        Raises:
            CalibrationError: Data are needed, and there are none.
            PassError: ``skip`` or ``layers`` matches no layer.
        """
        weights, edit = dict(self._weights(program)), program.edit()
        zeros = unseen = 0
        for step, item in enumerate(self._each_step(), start=1):
            scores, unseen = saliencies(program, context, weights, self.importance)
            masks = item._masks(weights, scores)
            zeros = sum(int((~mask).sum()) for mask in masks.values())
            if _apply(edit, weights, masks, f"{zeros} weights are zero") and step < self.steps:
                train_between(program, context, f"sparsify_step_{step}", key=repr(self))
        total = sum(weight.numel() for weight in weights.values())
        told = f"{100 * zeros / max(total, 1):.0f} % of {total} weights"
        if unseen:
            told += f", {unseen} layers by weights alone: no data tell what they take"
        return edit.result(told, zeros=zeros, unseen=unseen)

    def _each_step(self) -> list[Sparsify]:
        """What is zero after each step, of all weights."""
        parts = [step / self.steps for step in range(1, self.steps)]
        return [*(self._with(partial(step_ratio, part=part)) for part in parts), self]

    def _with(self, change: Callable[[float], float]) -> Sparsify:
        """The same with other ratios."""
        layers = {name: change(ratio) for name, ratio in parse_ratios(self.layers).items()}
        return replace(self, ratio=change(self.ratio), layers=format_ratios(layers))

    def milder(self, program: Program, context: Context) -> Milder:
        """Fewer weights become zero; a pattern has nothing in between."""
        if self.pattern != "any":
            return Milder()
        shares = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
        milder = [(self._with(partial(mul, share)), self.threshold * share) for share in shares]
        return Milder([replace(item, threshold=threshold) for item, threshold in milder])

    def space(self, program: Program, target: Target) -> dict[str, Sequence[Any]]:
        """How many weights become zero."""
        return {"ratio": [0.3, 0.5, 0.7, 0.9]} if self.pattern == "any" else {}

    @property
    def _pattern(self) -> tuple[int, int]:
        few, _, many = self.pattern.partition(":")
        try:
            return int(few), int(many)
        except ValueError as error:
            raise ValueError(f"pattern={self.pattern} must be any, or n:m such as 2:4") from error

    def _weights(self, program: Program) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights that are looked at, by the name of their first layer; tied ones once."""
        seen: set[int] = set()
        nodes = list(program.find(*_LAYERS))
        names = [str(node.target) for node in nodes]
        check_names(self.skip, names, "skip")
        check_names(parse_ratios(self.layers), names, "layers")
        for node in nodes:
            weight = program.leaf(node).get_parameter("weight")
            skipped = is_named(str(node.target), self.skip)
            if id(weight) not in seen and not skipped and weight.is_floating_point():
                seen.add(id(weight))
                yield str(node.target), weight

    def _masks(self, weights: Weights, scores: Scores) -> dict[str, torch.Tensor]:
        """Which weights stay."""
        if self.pattern != "any":
            return {name: _of_each(score, *self._pattern) for name, score in scores.items()}
        if self.threshold:
            return {name: weight.abs() >= self.threshold for name, weight in weights.items()}
        ratios = {name: own_ratio([name], parse_ratios(self.layers)) for name in scores}
        pool = {name: score for name, score in scores.items() if ratios[name] is None}
        masks = _together(pool, self.ratio) if self.scope == "global" and pool else {}
        rows = self.importance == "activation"  # outputs differ in the scale of their weights
        for name in scores.keys() - masks.keys():
            score, own = scores[name], ratios[name]
            flat = score.flatten(1) if rows else score.flatten()[None]
            masks[name] = _largest(flat, self.ratio if own is None else own).view_as(score)
        return {name: masks[name] for name in scores}


def _apply(edit: Edit, weights: Weights, masks: dict[str, torch.Tensor], what: str) -> bool:
    """Sets weights to zero, in one rewrite; whether some were not, and that was permitted."""
    if not any(bool(weights[name][~mask].any()) for name, mask in masks.items()):
        return False
    with edit, edit.together(what) as permitted, torch.no_grad():
        for name, mask in masks.items() if permitted else ():
            weights[name].mul_(mask)
    return permitted


def _together(scores: Scores, ratio: float) -> dict[str, torch.Tensor]:
    """Which weights stay where all layers together lose a share."""
    every = _largest(torch.cat([score.flatten().float() for score in scores.values()]), ratio)
    parts = every.split([score.numel() for score in scores.values()])
    pairs = zip(scores.items(), parts, strict=True)
    return {name: part.view_as(score) for (name, score), part in pairs}


def _largest(scores: torch.Tensor, ratio: float) -> torch.Tensor:
    """All but the lowest share along the last dimension; of equal ones the first go."""
    count = round(ratio * scores.shape[-1])
    lowest = scores.argsort(dim=-1, stable=True)[..., :count]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(-1, lowest, False)


def _of_each(scores: torch.Tensor, few: int, many: int) -> torch.Tensor:
    """The largest few of each many in a row along dimension 1."""
    rows = scores.movedim(1, -1)
    whole = rows.shape[-1] - rows.shape[-1] % many
    blocks = rows[..., :whole].unflatten(-1, (-1, many))
    mask = torch.ones_like(rows, dtype=torch.bool)
    mask[..., :whole] = _largest(blocks, 1 - few / many).flatten(-2)
    return mask.movedim(-1, 1)
