"""Analyses: facts computed from a program, cached until a pass changes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Generic, TypeVar, cast

from fxopt.errors import PassError
from fxopt.ir import Program

T = TypeVar("T")


class Analysis(ABC, Generic[T]):
    """Something worth computing once per program, such as channel dependencies.

    A subclass is a frozen dataclass whose fields are its settings. Its result must compare with
    ``==``, so that a false claim of preservation can be caught.
    """

    name: ClassVar[str]

    @abstractmethod
    def run(self, program: Program) -> T:
        """Computes the result without changing ``program``."""


class Analyses:
    """The cached results for one program."""

    def __init__(self) -> None:
        self._results: dict[Analysis[Any], Any] = {}

    def get(self, analysis: Analysis[T], program: Program) -> T:
        """The result of ``analysis`` on ``program``, computed when it is not there yet."""
        if analysis not in self._results:
            self._results[analysis] = analysis.run(program)
        return cast(T, self._results[analysis])

    def copy(self) -> Analyses:
        """A cache of its own with the same results."""
        twin = Analyses()
        twin._results = dict(self._results)
        return twin

    def invalidate(self, preserved: Iterable[str] = ()) -> None:
        """Forgets all results but those of the analyses named in ``preserved``."""
        keep = set(preserved)
        self._results = {a: r for a, r in self._results.items() if a.name in keep}

    def check(self, program: Program) -> None:
        """Recomputes what is cached, to catch a pass that claims falsely to preserve it.

        Raises:
            PassError: A cached result is no longer what the analysis yields.
        """
        for analysis, result in self._results.items():
            if analysis.run(program) != result:
                raise PassError(
                    f"the analysis {analysis.name} has changed, though it was declared preserved",
                    hint="remove it from `preserves` of the pass",
                )
