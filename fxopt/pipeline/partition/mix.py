"""Mixing runtimes: each segment of a program on the backend that is fastest there."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxopt.backends import Backend, LoweredModule, Region, cut_region
from fxopt.cost import Target, example_bytes, measure, multiply_adds
from fxopt.ir import Program
from fxopt.pipeline.partition.chain import Segment, segments
from fxopt.pipeline.partition.plan import cheapest_chain, seam_savings

# A prediction is made of many short measurements: one that promises less than this is noise.
_WORTH = 1.05

_ROUNDS = 2
_TURN_SECONDS = 0.35  # of one candidate in one round of measuring, the pause before it included

# A seam costs a call, about as long as it takes to move so many bytes, and the bytes themselves.
_CALL_BYTES = 300_000

Call = Callable[[], object]


@dataclass(frozen=True)
class Rival:
    """A backend that has proven right on the whole program.

    Attributes:
        backend: The backend.
        call: Runs the whole program on it, on the example inputs.
    """

    backend: Backend
    call: Call


@dataclass(frozen=True)
class Mixture:
    """Backends for consecutive pieces of a program.

    Attributes:
        pieces: Each with the names of its nodes; no two neighbours are on the same backend.
        predicted: Milliseconds that all of them together should take.
        single: Milliseconds of the fastest backend alone, measured in the same run.
    """

    pieces: tuple[tuple[Backend, frozenset[str]], ...]
    predicted: float
    single: float

    @property
    def promising(self) -> bool:
        """Whether there is more than one backend in it, and enough to be won."""
        return len(self.pieces) > 1 and self.predicted * _WORTH < self.single


@dataclass(frozen=True)
class MixingJob:
    """What mixing needs to know.

    Attributes:
        target: What is lowered for.
        flat: Flat inputs of the program to measure with.
        rivals: The backends to choose from.
        deadline: ``time.monotonic()`` at which it has to be over.
        progress: Takes a line to show.
    """

    target: Target
    flat: Sequence[Any]
    rivals: Sequence[Rival]
    deadline: float | None = None
    progress: Callable[[str], None] = lambda line: None

    def has_time(self, seconds: float = 0.0) -> bool:
        """Whether something that takes so long would be over in time."""
        return self.deadline is None or time.monotonic() + seconds < self.deadline


def find_mixture(program: Program, job: MixingJob) -> Mixture | None:
    """The cheapest way to run a program on several backends, as far as measuring segments tells.

    It is a prediction: whoever uses it has to measure the whole again.

    Args:
        program: It is not changed.
        job: What to choose from.

    Returns:
        None where there is nothing to choose, or no time for it.
    """
    chain = segments(program, multiply_adds(program))
    if len(chain) < 2 or len(job.rivals) < 2:
        return None
    regions = [cut_region(program, segment) for segment in chain]
    calls = _build(regions, _values(program, regions, job.flat), job)
    if calls is None or not job.has_time(_ROUNDS * _TURN_SECONDS * (len(calls) + len(job.rivals))):
        return None
    job.progress(f"measuring {len(chain)} segments on {len(job.rivals)} backends")
    times, whole = _measure(calls, len(chain), job.rivals)
    savings = seam_savings(times, whole, [_seam_weight(region) for region in regions[:-1]])
    predicted, path = cheapest_chain(times, savings)
    return Mixture(_pieces(chain, path, job.rivals), predicted, min(whole))


def _values(
    program: Program, regions: Sequence[Region], flat: Sequence[Any]
) -> dict[fx.Node, torch.Tensor]:
    """The inputs of all regions, from one run of the program."""
    recorder = _Recorder(program.module, {node for region in regions for node in region.inputs})
    with torch.no_grad():
        recorder.run(*flat)
    return recorder.values


class _Recorder(fx.Interpreter):
    """Runs a program and keeps the values of some of its nodes."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, torch.Tensor] = {}
        self._wanted = wanted

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self._wanted:
            self.values[n] = value
        return value


def _build(
    regions: Sequence[Region], values: Mapping[fx.Node, torch.Tensor], job: MixingJob
) -> dict[tuple[int, int], Call] | None:
    """Calls of each region on each backend that can take it; None when time runs out."""
    calls: dict[tuple[int, int], Call] = {}
    for (s, region), (b, rival) in itertools.product(enumerate(regions), enumerate(job.rivals)):
        if not job.has_time():
            return None
        label = rival.backend.label
        job.progress(f"lowering segment {s + 1} of {len(regions)} with {label}")
        try:
            calls[s, b] = _lowered(region, [values[n] for n in region.inputs], rival, job.target)
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; it is left out
            job.progress(f"segment {s + 1} fails with {label}: {error}")
    return calls


def _lowered(region: Region, inputs: list[torch.Tensor], rival: Rival, target: Target) -> Call:
    module = LoweredModule(region.program, rival.backend, target)
    with torch.no_grad():
        module(*inputs)  # compiles
    return lambda: module(*inputs)


def _measure(
    calls: Mapping[tuple[int, int], Call], count: int, rivals: Sequence[Rival]
) -> tuple[list[list[float]], list[float]]:
    """Milliseconds of each segment on each backend, and of the whole program on each."""
    named = {f"{s}/{b}": call for (s, b), call in calls.items()}
    named |= {f"/{b}": rival.call for b, rival in enumerate(rivals)}
    with torch.no_grad():
        measured = measure(named, rounds=_ROUNDS)
    medians = {name: latency.median for name, latency in measured.items()}
    backends = range(len(rivals))
    times = [[medians.get(f"{s}/{b}", math.inf) for b in backends] for s in range(count)]
    return times, [medians[f"/{b}"] for b in backends]


def _seam_weight(region: Region) -> float:
    """How much a seam behind a region costs, as far as the bytes that cross it tell."""
    return _CALL_BYTES + sum(example_bytes(node) for node in region.outputs)


def _pieces(
    chain: Sequence[Segment], path: Sequence[int], rivals: Sequence[Rival]
) -> tuple[tuple[Backend, frozenset[str]], ...]:
    """Neighbours on the same backend joined."""
    pieces = []
    pairs = zip(path, chain, strict=True)
    for b, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        names = frozenset(node.name for _, segment in group for node in segment)
        pieces.append((rivals[b].backend, names))
    return tuple(pieces)
