"""Which facts hold, as far as the passes of a plan require or provide them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from fxopt.analysis import Fact
from fxopt.ir import Program
from fxopt.passes import Pass


class Requirements:
    """Checks facts on programs, and remembers which pass broke one.

    Args:
        facts: All facts by name.
        passes: The passes of the plan, in order.
        program: The program before all of them.
    """

    def __init__(self, facts: Mapping[str, Fact], passes: Sequence[Pass], program: Program) -> None:
        self._facts = facts
        names = {fact for item in passes for fact in item.info.requires}
        self._holding = {n for n in sorted(names) if self.counterexample(n, program) is None}
        self._names = sorted(names)
        self._broken_by: dict[str, str] = {}

    def copy(self) -> Requirements:
        """What is known so far, to come back to."""
        twin = copy.copy(self)
        twin._holding, twin._broken_by = set(self._holding), dict(self._broken_by)
        return twin

    def counterexample(self, name: str, program: Program) -> str | None:
        """Why the fact called ``name`` does not hold of ``program``; None when it does."""
        if name not in self._facts:
            return "no plugin declares it"
        try:
            return next(iter(self._facts[name].counterexamples(program)), None)
        except Exception as error:  # noqa: BLE001 - a plugin's check may raise anything
            return f"its check fails with {type(error).__name__}: {error}"

    def missing(self, item: Pass, program: Program) -> str | None:
        """Why ``item`` cannot run: a fact that it requires, and where it does not hold."""
        for name in item.info.requires:
            found = self.counterexample(name, program)
            if found is not None:
                culprit = self._broken_by.get(name)
                blame = f", since {culprit} has run" if culprit else ""
                return f"requires {self._describe(name)}, which does not hold{blame}: {found}"
        return None

    def not_provided(self, item: Pass, program: Program) -> str | None:
        """The fact that ``item`` claims to provide and that does not hold, with a place."""
        for name in item.info.provides:
            found = self.counterexample(name, program)
            if found is not None:
                return f"provides {self._describe(name)}, but it does not hold: {found}"
        return None

    def update(self, item: Pass, program: Program) -> list[str]:
        """Takes note of what ``item`` did; returns the facts of the plan that it broke."""
        now = {name for name in self._names if self.counterexample(name, program) is None}
        broken = sorted(self._holding - now)
        self._broken_by.update(dict.fromkeys(broken, item.info.name))
        for name in now:
            self._broken_by.pop(name, None)
        self._holding = now
        return broken

    def _describe(self, name: str) -> str:
        known = self._facts.get(name)
        return f"{name} ({known.meaning})" if known is not None else name
