"""Examines what a pass left: every word that it gave is checked, cheap checks first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fxopt.errors import PassError, ProgramError
from fxopt.ir import PassResult, Program
from fxopt.passes import Exact
from fxopt.pipeline.checks import CHECKS, Check, all_values_are_right, values_are_right
from fxopt.pipeline.compare import Comparison
from fxopt.pipeline.identity import difference
from fxopt.pipeline.instruments import Instrument
from fxopt.pipeline.numbers import Numbers, Outputs, worst
from fxopt.pipeline.requirements import Requirements
from fxopt.pipeline.scoring import Scorer
from fxopt.pipeline.trial import Trial
from fxopt.pipeline.verdict import OverLimit, Reject, blamed


@dataclass
class Examiner:
    """Holds a pass to its word.

    Attributes:
        numbers: What the original computes.
        requirements: Which facts hold.
        scorer: The user's measure of quality, where there is one.
        max_drift: How far a lossy pass may take outputs from the original's.
        instruments: They have a say too.
        checking: Whether to check also what costs much and hardly ever fails: the values of all
            nodes, and the analyses that are declared preserved.
    """

    numbers: Numbers
    requirements: Requirements
    scorer: Scorer | None = None
    max_drift: float | None = None
    instruments: Sequence[Instrument] = ()
    checking: bool = False

    def prepare(self, trial: Trial, original: Program) -> None:
        """Measures what the result of a lossy pass is compared with, where not yet done.

        It comes before the pass so that the user's mistakes are not taken for the pass's.

        Raises:
            InputError: ``evaluate`` or the calibration data cannot be used.
        """
        if trial.exact:
            return
        self.numbers.prepare_calibration()
        if self.scorer is not None:
            self.scorer.prepare(original)

    def examine(self, trial: Trial, current: Outputs) -> None:
        """Fills in what is found out about ``trial``, whose pass has run.

        Args:
            trial: Its candidate is what the pass left.
            current: What the program before the pass computes.

        Raises:
            OverLimit: The pass costs more quality than is allowed.
            Reject: The pass broke its word.
        """
        item, after = trial.item, trial.candidate
        assert after is not None
        with blamed(item, "left a program that cannot be checked"):
            self._check_form(trial, after)
            if not self._is_changed(trial, after):
                self._check_facts(trial, trial.before)
                return
            values = all_values_are_right if self.checking else values_are_right
            self._check(trial, after, (values,))
            self._check_facts(trial, after)
        self._check_analyses(trial, after)
        self._check_instruments(trial, after)
        with blamed(item, "left a program that fails on the example inputs"):
            trial.outputs = self.numbers.run(after)
        self._check_numbers(trial, after, current)

    # -- structure and claims ----------------------------------------------------------------

    def _check_form(self, trial: Trial, after: Program) -> None:
        try:
            after.verify()
        except ProgramError as error:
            raise Reject(
                f"{trial.name} breaks the invariants: {'; '.join(error.violations)}"
            ) from error
        after.graph.lint()
        after.module.recompile()  # a pass that edits the graph by hand may have forgotten to
        self._check(trial, after, CHECKS)

    def _check(self, trial: Trial, after: Program, checks: Sequence[Check]) -> None:
        found = [text for check in checks for text in check(trial.before, after)]
        if found:
            raise Reject(f"{trial.name} leaves a wrong program: {'; '.join(found)}")

    def _is_changed(self, trial: Trial, after: Program) -> bool:
        """Compares what the pass says with what it did.

        A pass that changed something and denies it is rejected: whoever relies on the flag would
        go on with what is known of the program before. The reverse harms nobody; it is recorded.
        """
        result = trial.result
        assert isinstance(result, PassResult)
        found = difference(trial.before, after)
        if found is not None and not result.changed:
            raise Reject(f"{trial.name} claims to have changed nothing, but {found}")
        if found is None:
            trial.status = "unchanged"
            if result.changed:
                trial.reason = "it reports a change, but the program is the same bit for bit"
        return found is not None

    def _check_facts(self, trial: Trial, after: Program) -> None:
        found = self.requirements.not_provided(trial.item, after)
        if found is not None:
            raise Reject(f"{trial.name} {found}")

    def _check_analyses(self, trial: Trial, after: Program) -> None:
        trial.analyses.invalidate(trial.item.info.preserves)
        if not self.checking:
            return
        with blamed(trial.item, "left a program that an analysis fails on"):
            try:
                trial.analyses.check(after)
            except PassError as error:
                raise Reject(f"{trial.name} claims a false `preserves`: {error.what}") from error

    def _check_instruments(self, trial: Trial, after: Program) -> None:
        for instrument in self.instruments:
            veto = instrument.check(trial.item, trial.before, after)
            if veto is not None:
                raise Reject(f"{trial.name}: {veto}")

    # -- numbers -----------------------------------------------------------------------------

    def _check_numbers(self, trial: Trial, after: Program, current: Outputs) -> None:
        with blamed(trial.item, "left a program whose outputs cannot be compared"):
            against_before = self.numbers.compare(trial.outputs, current)
            against_original = self.numbers.compare(trial.outputs, self.numbers.reference)
        trial.error = None if against_before is None else against_before.error
        trial.drift = None if against_original is None else against_original.error
        fidelity = trial.item.info.fidelity
        if isinstance(fidelity, Exact):
            found = self.numbers.beyond(trial.outputs, current, fidelity.tolerance)
            if found is not None:
                raise Reject(f"{trial.name} declares itself exact, but {found}")
            return
        self._check_drift(trial, after, against_original)
        self._check_score(trial, after)

    def _check_drift(self, trial: Trial, after: Program, on_examples: Comparison | None) -> None:
        """The worst of examples and calibration data counts: the limit holds for both."""
        with blamed(trial.item, "left a program that fails on the calibration data"):
            on_calibration = self.numbers.calibration_drift(after)
        both = {"drift_examples": on_examples, "drift_calibration": on_calibration}
        trial.details.update({name: each.error for name, each in both.items() if each})
        found = worst(on_examples, on_calibration)
        trial.drift = None if found is None else found.error
        if found is not None and not math.isfinite(found.error):
            raise Reject(
                f"{trial.name} leaves outputs that are no longer comparable: {found.where}"
            )
        if self.max_drift is None:
            return
        if found is None:
            raise Reject(f"{trial.name} drifts, and without example inputs nobody knows how much")
        if found.error > self.max_drift:
            _over(
                trial,
                f"{trial.name} takes {found.where} {found.error:.2g} away from the original, "
                f"where max_drift={self.max_drift:g} is allowed",
            )

    def _check_score(self, trial: Trial, after: Program) -> None:
        if self.scorer is None:
            return
        with blamed(trial.item, "left a program that cannot be scored"):
            trial.score = self.scorer.score(after)
        trial.details["score_original"] = self.scorer.original
        excess = self.scorer.excess(trial.score)
        if excess is not None:
            _over(trial, f"{trial.name} costs too much quality: {excess}")


def _over(trial: Trial, limit: str) -> None:
    """A limit is not kept: the end of the attempt, unless it is judged later.

    Raises:
        OverLimit: It is judged now.
    """
    if not trial.provisional:
        raise OverLimit(limit)
    trial.excess = trial.excess or limit
