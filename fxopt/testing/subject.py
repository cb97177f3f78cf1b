"""The pass under test, and attempts to run it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxopt.analysis import Fact
from fxopt.errors import FxoptError
from fxopt.ir import PassResult, Program
from fxopt.passes import Pass
from fxopt.registry import default_registry
from fxopt.testing.cases import Case


class ConformanceError(FxoptError, AssertionError):
    """A pass does not keep to the contract of passes."""


@dataclass(frozen=True)
class Attempt:
    """One run of the pass.

    Attributes:
        before: The program that it was to change.
        after: The clone that it has changed.
        result: What it returned; for a pass that calls itself inapplicable, no change.
    """

    before: Program
    after: Program
    result: PassResult


@dataclass
class Subject:
    """A pass, and what it takes to run it.

    Attributes:
        item: The pass.
        facts: Facts that no installed plugin declares.
        prepare: Passes to run first.
    """

    item: Pass
    facts: Sequence[Fact] = ()
    prepare: Sequence[Pass] = ()
    _starts: dict[str, Program] = field(default_factory=dict)

    def known_facts(self) -> dict[str, Fact]:
        """All facts by name: those of installed plugins, and the author's own."""
        return {**default_registry().facts, **{fact.name: fact for fact in self.facts}}

    def start(self, case: Case) -> Program:
        """The program that the pass is given on a case; run it on clones only."""
        if case.name not in self._starts:
            program = case.program.clone()
            for item in self.prepare:
                item.run(program, case.context())
            self._starts[case.name] = program.clone()
        return self._starts[case.name]

    def ready(self, program: Program) -> bool:
        """Whether what the pass requires holds; without it the manager would not run the pass."""
        known = self.known_facts()
        return all(known[name].holds(program) for name in self.item.info.requires if name in known)

    def attempt(self, case: Case, limit: int | None = None, on: Program | None = None) -> Attempt:
        """Runs the pass on a clone.

        Args:
            case: Whose program, inputs and calibration data to use.
            limit: How many rewrites edits may do.
            on: Another program to run it on.

        Raises:
            ConformanceError: The pass raises.
        """
        before = self.start(case) if on is None else on
        after = copy_program(before)
        after.rewrite_limit = limit
        result = self._guarded(lambda: self._run(after, case), f"on the case {case.name}")
        require(
            isinstance(result, PassResult),
            f"run returns a {type(result).__name__}, not a PassResult",
            "return edit.result()",
        )
        return Attempt(before, after, result)

    def _run(self, program: Program, case: Case) -> Any:
        context = case.context()
        if self.item.inapplicable(program, context) is not None:
            return PassResult(changed=False)
        return self.item.run(program, context)

    def _guarded(self, action: Callable[[], Any], where: str) -> Any:
        try:
            return action()
        except Exception as error:
            raise ConformanceError(
                f"the pass raises {type(error).__name__}: {error}", where=where
            ) from error


def copy_program(program: Program) -> Program:
    """A clone.

    Raises:
        ConformanceError: The pass has left something that cannot be copied.
    """
    try:
        return program.clone()
    except Exception as error:
        what = f"the result cannot be copied: {type(error).__name__}: {error}"
        raise ConformanceError(what) from error


CheckBody = Callable[[], None]
DeclarationCheck = Callable[[Subject], None]
ProgramCheck = Callable[[Subject, Case], None]


def require(condition: bool, what: str, hint: str | None = None) -> None:
    """Raises a :class:`ConformanceError` unless ``condition`` holds."""
    if not condition:
        raise ConformanceError(what, hint=hint)


def require_none(problems: Iterable[str], hint: str | None = None) -> None:
    """Raises a :class:`ConformanceError` that lists ``problems``, if there are any."""
    listed = list(problems)
    require(not listed, "; ".join(listed), hint)
