"""Finds the guilty pass, and the guilty rewrite inside it, by binary search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fxopt.analysis import Analyses, Fact
from fxopt.errors import InputError
from fxopt.ir import PassResult, Program
from fxopt.passes import Context, Exact, Pass, format_pass
from fxopt.pipeline.numbers import Numbers
from fxopt.pipeline.planner import Plan
from fxopt.pipeline.requirements import Requirements
from fxopt.pipeline.sandbox import missing_data, private_context, run_pass, why_inapplicable
from fxopt.pipeline.verdict import describe_failure

Broken = Callable[[Program], bool]

_MOST_REWRITES = 1 << 24  # more than any pass does: where doubling the limit ends


@dataclass(frozen=True)
class BisectResult:
    """What bisecting found.

    Attributes:
        item: The guilty pass; None where the program is not broken after all of them.
        index: Its place in the pipeline, from 0.
        rewrite: The guilty rewrite, with the source line that it concerns; empty where the pass
            does its damage outside of rewrites.
        rewrite_index: Which of the pass's rewrites it is, from 0; None where it is none of them.
        reason: What is wrong, in words.
    """

    item: Pass | None = None
    index: int | None = None
    rewrite: str = ""
    rewrite_index: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.item is None or self.index is None:
            return self.reason
        lines = [f"guilty pass: {format_pass(self.item)}, number {self.index + 1}: {self.reason}"]
        if self.rewrite_index is not None:
            lines.append(f"guilty rewrite: number {self.rewrite_index + 1}: {self.rewrite}")
        else:
            lines.append("guilty rewrite: none, the damage is there with no rewrite at all")
        return "\n".join(lines)


def bisect(
    program: Program,
    passes: Plan | Sequence[Pass],
    context: Context,
    broken: Broken | None = None,
    *,
    tolerance: float | None = None,
    facts: Mapping[str, Fact] | None = None,
) -> BisectResult:
    """Finds the first pass after which the program is broken, and the rewrite that breaks it.

    Passes run one after the other without the pass manager's checks, so that the damage is kept.
    A pass that says it is inapplicable, lacks its data or, given ``facts``, a fact that it
    requires, is left out, as the manager does. A pass that raises breaks the program.

    Args:
        program: The program before all passes; it is left as it is.
        passes: The passes in the order in which they run.
        context: What passes may know.
        broken: Whether a program is broken; by default, when it breaks an invariant, fails on
            the examples, or its outputs are not the original's. One that raises means yes.
        tolerance: Relative output error that is allowed by default; what rounding may build up
            where None. Lossy passes need more.
        facts: All facts by name.

    Raises:
        InputError: The program is broken before any pass has run.
    """
    items = passes.passes if isinstance(passes, Plan) else tuple(passes)
    judge = broken or _Default(program, context, tolerance)
    search = _Search(program, items, context, judge, facts or {})
    return search.run()


@dataclass(frozen=True)
class _Attempt:
    """A program after some passes, or what went wrong there."""

    program: Program | None
    failure: str = ""
    rewrites: tuple[str, ...] = ()


class _Search:
    def __init__(
        self,
        program: Program,
        items: Sequence[Pass],
        context: Context,
        broken: Broken,
        facts: Mapping[str, Fact],
    ) -> None:
        self._program = program
        self._items = items
        self._context = context
        self._broken = broken
        self._facts = facts

    def run(self) -> BisectResult:
        before = self._why(_Attempt(self._program.clone()))
        if before is not None:
            raise InputError(
                f"the program is broken before any pass has run: {before}",
                hint="bisect finds a guilty pass; here the fault lies in the capture or the test",
            )
        if self._why(self._apply(self._program, self._items)) is None:
            return BisectResult(reason="the program is not broken after all passes")
        good, base = self._last_good_prefix()
        return self._inside(good, base)

    def _last_good_prefix(self) -> tuple[int, Program]:
        """The number of passes up to the guilty one, and the program that they make."""
        good, bad, base = 0, len(self._items), self._program
        while bad - good > 1:
            middle = (good + bad) // 2
            attempt = self._apply(base, self._items[good:middle])
            if self._why(attempt) is None and attempt.program is not None:
                good, base = middle, attempt.program
            else:
                bad = middle
        return good, base

    def _inside(self, index: int, base: Program) -> BisectResult:
        item = self._items[index]
        whole = self._limited(item, base, None)
        reason = self._why(whole) or "the program is broken after it"
        if self._why(self._limited(item, base, 0)) is not None:
            return BisectResult(item, index, reason=reason)
        good, bad = self._bracket(item, base, whole)
        if bad is None:
            return BisectResult(item, index, reason=reason)
        while bad - good > 1:
            middle = (good + bad) // 2
            if self._why(self._limited(item, base, middle)) is None:
                good = middle
            else:
                bad = middle
        last = self._limited(item, base, bad)
        text = last.rewrites[bad - 1] if len(last.rewrites) >= bad else ""
        return BisectResult(item, index, text, bad - 1, self._why(last) or reason)

    def _bracket(self, item: Pass, base: Program, whole: _Attempt) -> tuple[int, int | None]:
        """A number of rewrites that is still good, and one that is bad.

        A pass that raises may not tell how many rewrites it would do: the limit is doubled until
        it raises.
        """
        if self._why(self._limited(item, base, len(whole.rewrites))) is not None:
            return 0, max(1, len(whole.rewrites))
        good, limit = len(whole.rewrites), max(1, len(whole.rewrites))
        while limit <= _MOST_REWRITES:
            limit *= 2
            if self._why(self._limited(item, base, limit)) is not None:
                return good, limit
            good = limit
        return good, None

    def _limited(self, item: Pass, base: Program, limit: int | None) -> _Attempt:
        return self._apply(base, [item], limit)

    def _apply(self, base: Program, items: Sequence[Pass], limit: int | None = None) -> _Attempt:
        program = base.clone()
        for item in items:
            program.rewrites.clear()
            program.rewrite_limit = limit
            failure = self._run(item, program)
            if failure is not None:
                return _Attempt(None, failure, tuple(program.rewrites))
        program.rewrite_limit = base.rewrite_limit
        return _Attempt(program, rewrites=tuple(program.rewrites))

    def _run(self, item: Pass, program: Program) -> str | None:
        """Runs a pass unless the manager would leave it out; why it failed, if it did."""
        context = private_context(self._context, Analyses())
        try:
            facts = Requirements(self._facts, [item], program) if self._facts else None
            if facts is not None and facts.missing(item, program) is not None:
                return None
            if missing_data(item, context) or why_inapplicable(item, program, context):
                return None
            result = run_pass(item, program, context)
            program.module.recompile()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - what bisect is looking for
            return f"{item.info.name} failed: {describe_failure(error, item)}"
        if not isinstance(result, PassResult):
            return f"{item.info.name} returned a {type(result).__name__}, not a PassResult"
        return None

    def _why(self, attempt: _Attempt) -> str | None:
        """Why a program is broken; None when it is not."""
        if attempt.program is None:
            return attempt.failure
        try:
            if isinstance(self._broken, _Default):
                return self._broken.why(attempt.program)
            return "it is broken" if self._broken(attempt.program) else None
        except Exception as error:  # noqa: BLE001 - a broken program may fail in any way
            return f"{type(error).__name__}: {' '.join(str(error).split())}"


class _Default:
    """Broken is what does not verify, does not run, or computes something else."""

    def __init__(self, original: Program, context: Context, tolerance: float | None) -> None:
        self._numbers = Numbers(original, context)
        self._tolerance = Exact(tolerance).tolerance

    def __call__(self, program: Program) -> bool:
        return self.why(program) is not None

    def why(self, program: Program) -> str | None:
        """What is wrong with a program, in words."""
        program.verify()
        return self._numbers.beyond(
            self._numbers.run(program), self._numbers.reference, self._tolerance
        )
