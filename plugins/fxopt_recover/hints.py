"""Hints: what a network does within, imitated at layers of the same name."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from fxopt.plugin import Program, check_names, is_named

Kind = Literal["off", "attention", "features"]


class Hints:
    """Compares the outputs of layers of two programs, each time both have run.

    Use as a context: it watches the layers within.

    Args:
        student: The program that learns.
        teacher: The one that it learns from.
        names: Qualified names of layers of both.
        kind: What of their outputs is compared.
    """

    def __init__(self, student: Program, teacher: Program, names: list[str], kind: Kind) -> None:
        self._names = names
        self._compare = _COMPARISONS.get(kind, _attention_distance)
        self._watched = (_Watch(student, names), _Watch(teacher, names))

    @classmethod
    def between(
        cls, student: Program, teacher: Program, kind: Kind, patterns: tuple[str, ...]
    ) -> Hints:
        """The hints that some settings ask for.

        Raises:
            PassError: A pattern matches no layer that both have.
        """
        if kind == "off":
            return cls(student, teacher, [], kind)
        shared = _layers_of_both(student, teacher)
        if not patterns:
            return cls(student, teacher, _last_of_each_size(teacher, shared), kind)
        check_names(patterns, shared, "layers, which both networks need to have,")
        return cls(student, teacher, [n for n in shared if is_named(n, patterns)], kind)

    def __len__(self) -> int:
        return len(self._names)

    def __enter__(self) -> Hints:
        for watch in self._watched:
            watch.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for watch in self._watched:
            watch.end()

    def distance(self) -> torch.Tensor:
        """The mean distance over all hints, of the last run of both."""
        student, teacher = (watch.seen for watch in self._watched)
        return torch.stack([self._compare(student[n], teacher[n]) for n in self._names]).mean()


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


def _layers_of_both(student: Program, teacher: Program) -> list[str]:
    """Layers that yield a tensor of more than two dimensions in both, in order."""
    own = {str(node.target) for node in student.nodes if node.op == "call_module"}
    found = []
    for node in teacher.nodes:
        value = node.meta.get("val")
        several = isinstance(value, torch.Tensor) and value.dim() > 2
        if node.op == "call_module" and str(node.target) in own and several:
            found.append(str(node.target))
    return list(dict.fromkeys(found))


def _last_of_each_size(teacher: Program, names: list[str]) -> list[str]:
    """Of the layers that yield images of one size, or as many tokens, the last one."""
    last: dict[object, str] = {}
    for node in teacher.nodes:
        if node.op == "call_module" and str(node.target) in names:
            shape = node.meta["val"].shape
            last[str(shape[2:]) if len(shape) > 3 else str(shape[1])] = str(node.target)
    return list(last.values())


def _attention_distance(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Between maps of the mean square over channels, each normalised to length 1."""
    return (_map(output) - _map(wanted)).square().sum(1).mean()


def _map(value: torch.Tensor) -> torch.Tensor:
    """Channels are along dimension 1 of images, and along the last one of tokens."""
    channel = 1 if value.dim() > 3 else -1
    return F.normalize(value.square().mean(channel).flatten(1), dim=1)


def _feature_distance(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The squared error; of channels that do not match, what a linear map cannot make up for."""
    channel = 1 if output.dim() > 3 else -1
    x, y = (each.movedim(channel, -1).flatten(0, -2) for each in (output, wanted))
    if x.shape != y.shape:
        fitted = torch.linalg.lstsq(x.detach().float(), y.float()).solution
        x = x @ fitted.to(x.dtype)
    return F.mse_loss(x, y) / y.square().mean().clamp(min=1e-12)


_COMPARISONS = {"attention": _attention_distance, "features": _feature_distance}
