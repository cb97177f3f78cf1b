"""Which layers get more bits first, where weights in few bits cost too much quality."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce

import torch

from fxopt_quantize.sensitivity import Sensitivity
from fxopt_quantize.weight_only.packing import PACKED_BITS

FINE_BITS = 8


@dataclass(frozen=True)
class Tied:
    """Layers with a matrix in common, most often one: of differing bits, it would be stored twice.

    Attributes:
        names: Of the layers.
        matrices: All that they have; tensors are hashed by identity.
        bits: How many their weights have.
        error: Their part in the squared relative error of the outputs.
    """

    names: tuple[str, ...]
    matrices: frozenset[torch.Tensor]
    bits: int
    error: float

    @property
    def label(self) -> str:
        """The names in one text."""
        return ", ".join(self.names)

    def sensitivity(self) -> Sensitivity:
        """What their few bits cost in quality, and how many bytes they spare."""
        return Sensitivity(self.error, self._size(None) - self._size(self.bits))

    def steps(self) -> Iterator[Step]:
        """To eight bits, and on to floats.

        Rounding errors are taken to be spread evenly between levels, so that the squared error goes
        with the square of their distance.
        """
        closer = ((1 << self.bits) - 1) / ((1 << FINE_BITS) - 1)
        left, size = self.error * closer**2, self._size(FINE_BITS)
        if self.bits < FINE_BITS:
            yield Step(self, FINE_BITS, self.error - left, size - self._size(self.bits))
        yield Step(self, None, left, self._size(None) - size)

    def _size(self, bits: int | None) -> float:
        """Bytes that the weights take, with None those of floats."""
        packed = None if bits is None else 0.5 if bits <= PACKED_BITS else 1.0
        return sum(each.numel() * (packed or each.element_size()) for each in self.matrices)


@dataclass(frozen=True)
class Step:
    """More bits for some layers.

    Attributes:
        layers: Which.
        bits: What their weights get; None for floats.
        mends: By how much less the squared error of the outputs is.
        adds: How many bytes more they take.
    """

    layers: Tied
    bits: int | None
    mends: float
    adds: float


def tied(layers: Iterable[Tied]) -> list[Tied]:
    """Puts together what has a matrix in common, or is one layer that is called twice."""
    found: list[Tied] = []
    for each in layers:
        others = [other for other in found if other.matrices & each.matrices]
        found = [other for other in found if other not in others]
        found.append(reduce(_joined, [*others, each]))
    return found


def ordered(layers: Iterable[Tied]) -> list[Step]:
    """All steps, those first that mend most for the bytes that they add."""
    steps = [step for each in layers for step in each.steps()]
    return sorted(steps, key=lambda step: -step.mends / max(step.adds, 1.0))


def names_in(steps: Iterable[Step], bits: int | None) -> list[str]:
    """Of the layers of all steps that lead to so many bits."""
    return [name for step in steps if step.bits == bits for name in step.layers.names]


def _joined(one: Tied, other: Tied) -> Tied:
    names = tuple(dict.fromkeys((*one.names, *other.names)))
    bits, error = min(one.bits, other.bits), one.error + other.error
    return Tied(names, one.matrices | other.matrices, bits, error)
