"""Hints: what a network does within, imitated at layers of the same name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from fxopt.plugin import Program
from fxopt_recover.distances import relative_square
from fxopt_recover.layers import Layer, choose_layers
from fxopt_recover.regressor import fit, make_regressor

Kind = Literal["off", "attention", "features"]

_REGRESSORS = "hint_regressors"


class Hints:
    """Compares the outputs of layers of two programs, each time both have run.

    Use as a context: it watches the layers within. Where channels do not match, the student's
    module has a part more there, the regressors, which are trained and saved with the rest.

    Args:
        student: The program that learns.
        teacher: The one that it learns from.
        layers: Of both.
        kind: What of their outputs is compared.
    """

    def __init__(
        self, student: Program, teacher: Program, layers: Sequence[Layer], kind: Kind
    ) -> None:
        self._student, self._teacher, self._layers = student, teacher, layers
        self._compare = _COMPARISONS.get(kind, _attention_distance)
        names = [layer.name for layer in layers]
        self._watched = (_Watch(student, names), _Watch(teacher, names))
        self._regressors = nn.ModuleList(
            _regressor(layer) if kind == "features" else nn.Identity() for layer in layers
        )
        # else the regressors alone would be trained of a model that is frozen for inference
        asks = any(weight.requires_grad for weight in student.module.parameters())
        self._regressors.requires_grad_(asks)

    @classmethod
    def between(
        cls,
        student: Program,
        teacher: Program,
        kind: Kind,
        patterns: tuple[str, ...],
        examples: Sequence[Sequence[Any]] = (),
    ) -> Hints:
        """The hints that some settings ask for.

        Args:
            student: The program that learns.
            teacher: The one that it learns from.
            kind: What of outputs is compared.
            patterns: Of names of layers.
            examples: Flat inputs, on which regressors are fitted to begin with.

        Raises:
            PassError: There are no such layers, or they do not fit each other.
        """
        if kind == "off":
            return cls(student, teacher, [], kind)
        layers = choose_layers(student, teacher, patterns, maps=kind == "attention")
        hints = cls(student, teacher, layers, kind)
        if examples:
            hints._fit(examples[0])
        return hints

    def __len__(self) -> int:
        return len(self._layers)

    def __enter__(self) -> Hints:
        for watch in self._watched:
            watch.begin()
        self._student.module.add_module(_REGRESSORS, self._regressors)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for watch in self._watched:
            watch.end()
        delattr(self._student.module, _REGRESSORS)

    def distance(self) -> torch.Tensor:
        """The mean distance over all hints, of the last run of both."""
        each = zip(self._regressors, self._pairs(), strict=True)
        return torch.stack([self._compare(regressor(x), y) for regressor, (x, y) in each]).mean()

    @torch.no_grad()
    def _fit(self, inputs: Sequence[Any]) -> None:
        with self:
            self._student(*inputs), self._teacher(*inputs)
            for regressor, (x, y) in zip(self._regressors, self._pairs(), strict=True):
                fit(regressor, x.flatten(0, -2), y.flatten(0, -2))

    def _pairs(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What layers of both have yielded, with channels last."""
        student, teacher = (watch.seen for watch in self._watched)
        return [
            (student[e.name].movedim(e.channel, -1), teacher[e.name].movedim(e.channel, -1))
            for e in self._layers
        ]


def _regressor(layer: Layer) -> nn.Module:
    channels, wanted = (value.shape[layer.channel] for value in (layer.own, layer.wanted))
    return make_regressor(layer.own, channels, wanted)


class _Watch:
    """Keeps the last outputs of some layers."""

    def __init__(self, program: Program, names: list[str]) -> None:
        self._program, self._names = program, names
        self._handles: list[Any] = []
        self.seen: dict[str, torch.Tensor] = {}

    def begin(self) -> None:
        for name in self._names:
            leaf = self._program.module.get_submodule(name)
            self._handles.append(leaf.register_forward_hook(self._keeper(name)))

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()
        self.seen.clear()

    def _keeper(self, name: str) -> Callable[..., None]:
        def keep(leaf: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            self.seen[name] = output

        return keep


def _attention_distance(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Between maps of the mean square over channels, each normalised to length 1."""
    return (_map(output) - _map(wanted)).square().sum(1).mean()


def _map(value: torch.Tensor) -> torch.Tensor:
    return F.normalize(value.square().mean(-1).flatten(1), dim=1)


_COMPARISONS = {"attention": _attention_distance, "features": relative_square}
