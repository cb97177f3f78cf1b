"""The pass manager: runs the passes of a plan and keeps only what holds its word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fxopt.analysis import Fact
from fxopt.ir import PassResult, Program
from fxopt.passes import Context, Lossy, Pass
from fxopt.pipeline.examiner import Examiner
from fxopt.pipeline.instruments import Instrument
from fxopt.pipeline.lowering.version import LOSSY_SLACK
from fxopt.pipeline.numbers import Numbers
from fxopt.pipeline.planner import Plan
from fxopt.pipeline.relax import relax
from fxopt.pipeline.requirements import Requirements
from fxopt.pipeline.sandbox import (
    missing_data,
    private_context,
    run_pass,
    why_inapplicable,
)
from fxopt.pipeline.scoring import Evaluate, Scorer
from fxopt.pipeline.sharing import share_tensors
from fxopt.pipeline.trial import Trial
from fxopt.pipeline.verdict import OverLimit, Reject, Skip, Verdict, blamed
from fxopt.report import PassRecord


@dataclass(frozen=True)
class Outcome:
    """What the passes made of a program.

    Attributes:
        program: The program after all passes that were accepted.
        exact: The last program before the first lossy pass that was accepted: it differs from
            the original by rounding alone, and is ``program`` itself where no lossy pass was.
        records: What became of each pass, in order.
    """

    program: Program
    exact: Program
    records: tuple[PassRecord, ...]


class PassManager:
    """Runs a plan; each pass works on a copy, and its result is kept if it holds its word.

    A pass that fails or breaks its word is rolled back, and its record says so and why. The
    others go on; those that require a fact that is missing now are skipped. One that costs more
    quality than is allowed is tried in milder settings first, where it has any.

    Args:
        plan: The passes in order.
        facts: All facts by name.
        context: What passes may know. Its examples are what outputs are compared on.
        max_drift: Largest relative output error against the original that a lossy pass may leave.
        max_drop: Largest drop of the score below the original's that a lossy pass may leave.
        evaluate: Scores a module, higher is better; called after each lossy pass.
        score: The original's score, where it is known already.
        argument_names: Names of the positional arguments of the user's ``forward``, for the
            module that ``evaluate`` is given.
        instruments: Watch, and may stop, what goes on.
        checking: Also checks what costs much and hardly ever fails; see
            :class:`fxopt.pipeline.examiner.Examiner`.
    """

    def __init__(
        self,
        plan: Plan,
        facts: Mapping[str, Fact],
        context: Context,
        *,
        max_drift: float | None = None,
        max_drop: float | None = None,
        evaluate: Evaluate | None = None,
        score: float | None = None,
        argument_names: Sequence[str] = (),
        instruments: Sequence[Instrument] = (),
        checking: bool = False,
    ) -> None:
        self._plan = plan
        self._facts = facts
        self._context = context
        self._max_drift = max_drift
        self._instruments = instruments
        self._checking = checking
        self._scorer = evaluate and Scorer(
            evaluate,
            max_drop=max_drop,
            seed=context.seed,
            argument_names=argument_names,
            original=score,
        )

    def run(self, program: Program) -> Outcome:
        """Runs all passes of the plan; ``program`` itself is left as it is.

        Raises:
            InputError: The examples, the calibration data or ``evaluate`` cannot be used.
            ProgramError: ``program`` breaks an invariant before any pass has run.
        """
        program.verify()
        examiner = Examiner(
            Numbers(program, self._context),
            Requirements(self._facts, self._plan.passes, program),
            scorer=self._scorer,
            max_drift=self._max_drift,
            instruments=self._instruments,
            checking=self._checking,
        )
        return _Run(self._plan, self._context, examiner, program).execute()


class _Run:
    """The state of one run of a plan."""

    def __init__(self, plan: Plan, context: Context, examiner: Examiner, original: Program) -> None:
        self._plan = plan
        self._context = context
        self._analyses = context.analyses
        self._examiner = examiner
        self._instruments = examiner.instruments
        self._original = original
        self._program = original
        self._exact = original
        self._lossless = True
        self._outputs = examiner.numbers.reference

    def execute(self) -> Outcome:
        """Runs pass after pass."""
        for instrument in self._instruments:
            instrument.begin(self._plan, self._program)
        records = tuple(self._step(item) for item in self._plan.passes)
        for instrument in self._instruments:
            instrument.end(self._program, records)
        return Outcome(self._program, self._exact, records)

    def _step(self, item: Pass) -> PassRecord:
        trial = self._attempt(item)
        if trial.over_limit:
            limit = self._examiner.max_drift
            aim = None if limit is None else limit / LOSSY_SLACK
            trial = relax(trial, self._attempt, self._private_context(), aim)
        if trial.status == "applied":
            self._commit(trial)
        record = trial.record()
        for instrument in self._instruments:
            instrument.after_pass(record, trial.before, trial.candidate)
        return record

    def _attempt(self, item: Pass) -> Trial:
        context = self._private_context()
        trial = Trial(item, self._program, context, context.analyses)
        try:
            self._admit(trial)
            self._examiner.prepare(trial, self._original)
            self._execute(trial)
            self._examiner.examine(trial, self._outputs)
            self._share(trial)
        except Verdict as verdict:
            trial.status, trial.reason = verdict.status, str(verdict)
            trial.over_limit = isinstance(verdict, OverLimit)
        return trial

    def _private_context(self) -> Context:
        return private_context(self._context, self._analyses.copy())

    def _admit(self, trial: Trial) -> None:
        """Makes the copy that the pass works on.

        Raises:
            Skip: The pass must not run, or there is nothing for it to do.
        """
        item = trial.item
        for instrument in self._instruments:
            reason = instrument.should_run(item, trial.before)
            if reason is not None:
                raise Skip(reason)
        with blamed(item, "failed to say whether it is applicable"):
            # it gets the copy already: asking must not change the program either
            trial.candidate = trial.before.clone()
            reason = why_inapplicable(item, trial.candidate, trial.context)
        reason = reason or missing_data(item, trial.context)
        reason = reason or self._examiner.requirements.missing(item, trial.before)
        if reason is not None:
            raise Skip(reason)

    def _execute(self, trial: Trial) -> None:
        assert trial.candidate is not None
        for instrument in self._instruments:
            instrument.before_pass(trial.item, trial.before)
        with blamed(trial.item, "failed"):
            result = run_pass(trial.item, trial.candidate, trial.context)
        if not isinstance(result, PassResult):
            raise Reject(
                f"{trial.name} returned a {type(result).__name__}, not a PassResult: "
                "its run must end with `return edit.result()`"
            )
        with blamed(trial.item, "returned a PassResult that makes no sense"):
            trial.result = replace(
                result,
                summary=str(result.summary),
                rewrites=tuple(result.rewrites),
                refused=tuple(result.refused),
                details=dict(result.details),
            )
        trial.candidate.rewrite_limit = trial.before.rewrite_limit

    def _share(self, trial: Trial) -> None:
        if trial.status == "applied" and trial.candidate is not None:
            with blamed(trial.item, "added a module whose weights cannot be set"):
                trial.details["shared"] = share_tensors(trial.before, trial.candidate)

    def _commit(self, trial: Trial) -> None:
        assert trial.candidate is not None
        self._program, self._outputs = trial.candidate, trial.outputs
        self._analyses = trial.analyses
        self._lossless &= not isinstance(trial.item.info.fidelity, Lossy)
        if self._lossless:
            self._exact = trial.candidate
        broken = self._examiner.requirements.update(trial.item, trial.candidate)
        if broken:
            trial.details["broken"] = broken
