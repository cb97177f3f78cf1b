"""Facts: named statements about a program that can be checked on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fxopt.ir import Program


@dataclass(frozen=True)
class Fact:
    """A statement that passes require and provide, instead of naming other passes.

    Attributes:
        name: How passes refer to it, such as ``batch_norms_folded``.
        meaning: The statement in words, for errors and ``fxopt plan``.
        counterexamples: Yields a line per place in a program where it does not hold.
    """

    name: str
    meaning: str
    counterexamples: Callable[[Program], Iterable[str]]

    def holds(self, program: Program) -> bool:
        """Whether the statement is true of ``program``."""
        return next(iter(self.counterexamples(program)), None) is None
