"""What lowering needs to know besides the programs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fxopt.backends import Backend
from fxopt.cost import Target
from fxopt.emit import OptimizedModule
from fxopt.pipeline.isolation import Isolation

PATIENCE_SECONDS = 600.0
"""No answer from the worker for so long is a hang."""

SLOW_MS = 300.0
"""Calls that take longer have few turns in races, each of which makes up for short moods."""


@dataclass(frozen=True)
class LoweringJob:
    """What lowering needs to know.

    Attributes:
        name: What the report calls the region.
        target: What to lower for.
        backends: What may be tried.
        examples: Flat example inputs, one or two batch sizes; the first one is timed.
        original: Calls the user's own model on the first example.
        argument_names: Names of the positional arguments of the user's ``forward``.
        accept: Says why an emitted module must not be used after all; None when it may. It is
            given what the module returned for the first example, None where it was not called.
        isolation: Where candidates are tried first, out of harm's way; None to do without.
        beside: Where what builds slowly is tried instead, so that the others can be built in the
            meantime; None where they wait for each other.
        mix: Whether to look for a mixture of backends that beats each of them. It has to build
            and measure every part of the program on every backend.
        deadline: ``time.monotonic()`` at which no further candidate is begun.
        progress: Takes a line to show.
    """

    name: str
    target: Target
    backends: Sequence[Backend]
    examples: Sequence[Sequence[Any]]
    original: Callable[[], object]
    argument_names: Sequence[str] = ()
    accept: Callable[[OptimizedModule, Any], str | None] = lambda module, outputs: None
    isolation: Isolation | None = None
    beside: Isolation | None = None
    mix: bool = False
    deadline: float | None = None
    progress: Callable[[str], None] = lambda line: None

    @property
    def seconds_left(self) -> float:
        """Until the time limit; infinite where there is none, negative once it has passed."""
        return math.inf if self.deadline is None else self.deadline - time.monotonic()

    @property
    def isolations(self) -> tuple[Isolation, ...]:
        """All that there are."""
        return tuple(each for each in (self.isolation, self.beside) if each is not None)

    def holder(self, key: str) -> Isolation | None:
        """Where a candidate is kept; None where it is not, or no longer."""
        return next((each for each in self.isolations if each.holds(key)), None)

    def forget(self, keys: Sequence[str]) -> None:
        """Lets go of what is kept under these keys."""
        for isolation in self.isolations:
            isolation.forget(keys)

    @property
    def late(self) -> bool:
        """Whether the time limit has passed."""
        return self.seconds_left < 0
