"""Which layers are imitated: those that both networks have, of outputs that can be compared."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fxopt.plugin import PassError, Program, check_names, is_named
from fxopt_recover.scores import is_float

_CHANNELS_FIRST = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d)


@dataclass(frozen=True)
class Layer:
    """A layer of the same name in two networks.

    Attributes:
        name: Qualified.
        channel: The dimension of its channels: 1 of images, the last one of tokens and vectors.
        own: What the student's yields; a fake tensor, like the next.
        wanted: What the teacher's yields.
    """

    name: str
    channel: int
    own: torch.Tensor
    wanted: torch.Tensor

    @property
    def positions(self) -> tuple[str, ...]:
        """The size of the teacher's images, or its number of tokens; none of vectors."""
        return _positions(self.wanted, self.channel)

    @property
    def fits(self) -> bool:
        """Whether both yield as many values of each channel."""
        same = self.own.dim() == self.wanted.dim()
        return same and _positions(self.own, self.channel) == self.positions


def choose_layers(
    student: Program, teacher: Program, patterns: tuple[str, ...], *, maps: bool
) -> list[Layer]:
    """The layers that are named; by default the last one within of each size of output.

    Args:
        student: The program that learns.
        teacher: The one that it learns from.
        patterns: Of names.
        maps: Whether it is maps of positions that are compared, so that there have to be several.

    Raises:
        PassError: A pattern matches no layer that both have, one that is named yields something
            of another size in each, or there is none to choose.
    """
    shared = [layer for layer in _layers_of_both(student, teacher) if not maps or _is_map(layer)]
    if not patterns:
        return _last_of_each_size(teacher, shared)
    names = [layer.name for layer in shared]
    check_names(patterns, names, "layers, which both networks need to have,")
    named = [layer for layer in shared if is_named(layer.name, patterns)]
    for layer in named:
        _check_size(layer)
    return named


def _layers_of_both(student: Program, teacher: Program) -> list[Layer]:
    """In the teacher's order."""
    own, wanted = _values(student), _values(teacher)
    return [
        Layer(name, _channel(teacher.module.get_submodule(name), value), own[name], value)
        for name, value in wanted.items()
        if name in own
    ]


def _values(program: Program) -> dict[str, torch.Tensor]:
    """What layers yield, by name; the last time where they are called several times."""
    calls = [(str(n.target), n.meta.get("val")) for n in program.nodes if n.op == "call_module"]
    return {name: value for name, value in calls if is_float(value) and value.dim() > 1}


def _channel(leaf: nn.Module, value: torch.Tensor) -> int:
    return 1 if value.dim() > 3 or isinstance(leaf, _CHANNELS_FIRST) else -1


def _positions(value: torch.Tensor, channel: int) -> tuple[str, ...]:
    """Of all dimensions but the batch and channels; a size that depends on the batch is a *."""
    sizes = [str(size) if isinstance(size, int) else "*" for size in value.shape]
    del sizes[channel]
    return tuple(sizes[1:])


def _is_map(layer: Layer) -> bool:
    return any(size != "1" for size in layer.positions)


def _last_of_each_size(teacher: Program, layers: list[Layer]) -> list[Layer]:
    outputs = {str(node.target) for node in teacher.output.all_input_nodes}  # imitated anyway
    within = [layer for layer in layers if layer.fits and layer.name not in outputs]
    if not within:
        raise PassError(
            "distill finds no layers for hints: none within has the same name and as large an "
            "output in both networks",
            hint="use hints=off",
        )
    return list({layer.positions: layer for layer in within}.values())


def _check_size(layer: Layer) -> None:
    if not layer.fits:
        sizes = [tuple(value.shape[1:]) for value in (layer.own, layer.wanted)]
        raise PassError(
            f"distill: hints cannot compare layer {layer.name!r}, which yields {sizes[0]} for each "
            f"sample in the student and {sizes[1]} in the teacher",
            hint="name layers= that yield images of one size, or as many tokens, in both",
        )
