"""The pass manager: runs the passes of a plan and keeps only what holds its word."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile
from typing import Any

from fxopt.analysis import Analyses, Fact
from fxopt.ir import PassResult, Program
from fxopt.passes import Context, Lossy, Pass
from fxopt.pipeline.chapters import Chapter, chapters, verdict_of
from fxopt.pipeline.examiner import Examiner
from fxopt.pipeline.instruments import Instrument
from fxopt.pipeline.lowering.version import LOSSY_SLACK
from fxopt.pipeline.numbers import Numbers, Outputs
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
        exact: The program after the accepted exact passes alone: it differs from the original by
            rounding, and is ``program`` itself where no lossy pass was accepted.
        unrounded: The program after the accepted passes but those that round
            (:attr:`fxopt.passes.PassInfo.rounds`): ``program`` itself where none of these was
            accepted, and ``exact`` itself where no other lossy pass was.
        reference: Flat outputs of the original, one tuple per example.
        outputs: Those of ``program``.
        records: What became of each pass, in order.
    """

    program: Program
    exact: Program
    unrounded: Program
    reference: Outputs
    outputs: Outputs
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
        known: Flat outputs of the program on the first example, where they are known already.
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
        known: Sequence[Any] | None = None,
        instruments: Sequence[Instrument] = (),
        checking: bool = False,
    ) -> None:
        self._plan = plan
        self._facts = facts
        self._context = context
        self._max_drift = max_drift
        self._known = known
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
            Numbers(program, self._context, self._known),
            Requirements(self._facts, self._plan.passes, program),
            scorer=self._scorer,
            max_drift=self._max_drift,
            instruments=self._instruments,
            checking=self._checking,
        )
        outcome = _Run(self._plan, self._context, examiner, program).execute()
        if outcome.program is outcome.exact:
            return outcome
        # what loses, or rounds, must pay beside the best that does not
        exact = self._completed(outcome.exact, outcome, _loses)
        if outcome.unrounded is outcome.exact:
            return replace(outcome, exact=exact, unrounded=exact)
        if outcome.unrounded is outcome.program:
            return replace(outcome, exact=exact)
        unrounded = self._completed(outcome.unrounded, outcome, _rounds)
        return replace(outcome, exact=exact, unrounded=unrounded)

    def _completed(
        self, program: Program, outcome: Outcome, left_out: Callable[[Pass], bool]
    ) -> Program:
        """A program from before the first pass that is left out, after the exact ones behind it."""
        steps = zip(self._plan.steps, outcome.records, strict=True)
        applied = [step for step, record in steps if record.status == "applied"]
        behind = dropwhile(lambda step: not left_out(step.item), applied)
        rest = Plan(tuple(step for step in behind if not _loses(step.item)))
        if not rest.steps:
            return program
        examiner = Examiner(
            Numbers(program, self._context),
            Requirements(self._facts, rest.passes, program),
            checking=self._checking,
        )
        return _Run(rest, self._context, examiner, program).execute().program


def _loses(item: Pass) -> bool:
    return isinstance(item.info.fidelity, Lossy)


def _rounds(item: Pass) -> bool:
    return item.info.rounds


@dataclass(frozen=True)
class _State:
    """How far a run has come, to come back to."""

    program: Program
    exact: Program
    lossless: bool
    unrounded: Program
    rounded: bool
    outputs: Outputs
    analyses: Analyses
    requirements: Requirements


def _judged(lead: Trial, trials: Sequence[Trial]) -> Trial:
    """A trial as what came of it with all passes that followed."""
    applied = [trial for trial in trials if trial.status == "applied"]
    excess = verdict_of(trials)
    if lead.status != "applied" or not applied:
        return lead
    if excess:
        return replace(lead, status="rolled back", reason=excess, over_limit=True)
    return replace(lead, drift=applied[-1].drift)


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
        self._unrounded = original
        self._rounded = False
        self._outputs = examiner.numbers.reference

    def execute(self) -> Outcome:
        """Runs pass after pass."""
        for instrument in self._instruments:
            instrument.begin(self._plan, self._program)
        found = [self._chapter(passes) for passes in chapters(self._plan.passes)]
        records = tuple(record for chapter in found for record in chapter)
        for instrument in self._instruments:
            instrument.end(self._program, records)
        reference = self._examiner.numbers.reference
        return Outcome(
            self._program, self._exact, self._unrounded, reference, self._outputs, records
        )

    def _step(self, item: Pass) -> PassRecord:
        trial = self._attempt(item)
        if trial.over_limit:
            limit = self._examiner.max_drift
            aim = None if limit is None else limit / LOSSY_SLACK
            trial = relax(trial, self._attempt, self._private_context(), aim)
        if trial.status == "applied":
            self._commit(trial)
        return self._told(trial)

    def _told(self, trial: Trial) -> PassRecord:
        record = trial.record()
        for instrument in self._instruments:
            instrument.after_pass(record, trial.before, trial.candidate)
        return record

    # -- passes that are judged together -----------------------------------------------------

    def _chapter(self, passes: Chapter) -> list[PassRecord]:
        if len(passes) == 1:
            return [self._step(passes[0])]
        before = self._state()
        trials = self._together(passes)
        excess = verdict_of(trials)
        if excess:
            trials = self._milder_together(before, trials, excess)
        return [self._told(trial) for trial in trials]

    def _together(self, passes: Sequence[Pass]) -> list[Trial]:
        """Runs passes one after the other; their limits are judged at the end."""
        trials = []
        for item in passes:
            trial = self._attempt(item, provisional=True)
            if trial.status == "applied":
                self._commit(trial)
            trials.append(trial)
        return trials

    def _milder_together(self, before: _State, failed: list[Trial], excess: str) -> list[Trial]:
        """Tries milder settings of the first pass that costs quality, each with all that follow.

        Where none keeps the limits, all of them are rolled back.
        """
        lead = next(trial for trial in failed if trial.status == "applied" and not trial.exact)
        found: dict[int, tuple[_State, list[Trial]]] = {}

        def attempt(item: Pass) -> Trial:
            self._restore(before)
            trials = self._together([item if t is lead else t.item for t in failed])
            judged = _judged(trials[failed.index(lead)], trials)
            found[id(judged)] = self._state(), trials
            return judged

        limit = self._examiner.max_drift
        aim = None if limit is None else limit / LOSSY_SLACK
        refused = replace(lead, status="rolled back", reason=excess, over_limit=True)
        best = relax(refused, attempt, self._private_context(), aim)
        if best is not refused:
            state, trials = found[id(best)]
            self._restore(state)
            return trials
        self._restore(before)
        for trial in failed:
            if trial.status == "applied":
                reason = best.reason if trial is lead else f"with {lead.name}, that it followed"
                trial.status, trial.reason = "rolled back", reason
        return failed

    def _state(self) -> _State:
        return _State(
            self._program,
            self._exact,
            self._lossless,
            self._unrounded,
            self._rounded,
            self._outputs,
            self._analyses,
            self._examiner.requirements.copy(),
        )

    def _restore(self, state: _State) -> None:
        self._program, self._exact, self._lossless = state.program, state.exact, state.lossless
        self._unrounded, self._rounded = state.unrounded, state.rounded
        self._outputs, self._analyses = state.outputs, state.analyses
        self._examiner.requirements = state.requirements.copy()

    # -- one pass ----------------------------------------------------------------------------

    def _attempt(self, item: Pass, provisional: bool = False) -> Trial:
        context = self._private_context()
        trial = Trial(item, self._program, context, context.analyses, provisional=provisional)
        try:
            self._admit(trial)
            self._examiner.prepare(trial, self._original)
            self._execute(trial)
            self._examiner.examine(trial, self._outputs)
            self._share(trial)
        except Verdict as verdict:
            trial.status, trial.reason = verdict.status, str(verdict)
            trial.over_limit = isinstance(verdict, OverLimit)
        trial.ended = time.perf_counter()
        return trial

    def _private_context(self) -> Context:
        context = replace(self._context, original=self._original)
        return private_context(context, self._analyses.copy())

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
        self._lossless &= not _loses(trial.item)
        self._rounded |= _rounds(trial.item)
        if self._lossless:
            self._exact = trial.candidate
        if not self._rounded:
            self._unrounded = trial.candidate
        broken = self._examiner.requirements.update(trial.item, trial.candidate)
        if broken:
            trial.details["broken"] = broken
