"""Comparing candidates at the batch sizes of the other examples, for which some compile anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from fxopt.pipeline.isolation import Isolation, Parcel
from fxopt.pipeline.lowering.candidate import Candidate, describe, output_error
from fxopt.pipeline.lowering.job import PATIENCE_SECONDS, LoweringJob
from fxopt.pipeline.lowering.screen import pack

_NOT_ISOLATED = "not isolated"


class OtherSizes:
    """Finds out whether candidates are right at the other examples' sizes.

    Args:
        job: Has the examples and the worker.
    """

    def __init__(self, job: LoweringJob) -> None:
        self._job = job
        self._others = range(1, len(job.examples))
        self._found: dict[Candidate, str] = {}

    @contextmanager
    def compared_meanwhile(self, candidate: Candidate) -> Iterator[None]:
        """Compares in the worker while this process does something else, such as building.

        That is for what takes long to compile. Both are over at the end of the block, so that
        nothing disturbs what is timed then.
        """
        isolation = self._isolation(candidate)
        if isolation is None or not candidate.builds_slowly:
            yield
            return
        with (
            pack(candidate.version, self._job) as parcel,
            _aside(lambda: self._elsewhere(candidate, isolation, parcel), isolation) as found,
        ):
            yield
        self._found[candidate] = found.result()

    def wrong(self, candidate: Candidate) -> str | None:
        """Why it cannot be used at the other examples' sizes; None when it can.

        Some backends compile for each, so this is not done for more candidates than needed.
        """
        if not self._others:
            return None
        if candidate not in self._found:
            self._found[candidate] = self._compare(candidate)
        reason = self._found[candidate]
        if reason == _NOT_ISOLATED:
            reason = self._here(candidate)
        return f"at another batch size: {reason}" if reason else None

    def _compare(self, candidate: Candidate) -> str:
        """What a trial in the worker finds wrong; empty where it is right."""
        isolation = self._isolation(candidate)
        if isolation is None:
            return _NOT_ISOLATED
        with pack(candidate.version, self._job) as parcel:
            return self._elsewhere(candidate, isolation, parcel)

    def _isolation(self, candidate: Candidate) -> Isolation | None:
        return self._job.isolation if self._others and not candidate.assignment.native else None

    def _elsewhere(self, candidate: Candidate, isolation: Isolation, parcel: Parcel) -> str:
        result = isolation.trial(
            parcel,
            candidate.assignment,
            self._job.target,
            timeout=self._patience(candidate),
            tolerance=candidate.version.tolerance,
            which=self._others,
            timed=False,
        )
        if result.outcome == _NOT_ISOLATED:
            return result.outcome
        return result.reason or _judge([each.error for each in result.errors], candidate)

    def _patience(self, candidate: Candidate) -> float:
        """Seconds: a time limit leaves at least what building it took so far."""
        return min(PATIENCE_SECONDS, max(self._job.seconds_left, candidate.record.seconds, 1.0))

    def _here(self, candidate: Candidate) -> str:
        """What a run in this process finds wrong; empty where it is right."""
        examples = self._job.examples
        try:
            errors = [output_error(candidate, examples[index], index) for index in self._others]
        except Exception as failure:  # noqa: BLE001 - a plugin may raise anything; it is reported
            return describe(failure)
        return _judge(errors, candidate)


@contextmanager
def _aside(task: Callable[[], str], isolation: Isolation) -> Iterator[Future[str]]:
    """Runs a task of the worker in a thread; an error or Ctrl-C in the block ends the worker."""
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(task)
        try:
            yield future
        except BaseException:
            isolation.close()
            raise


def _judge(errors: Sequence[float], candidate: Candidate) -> str:
    limit = candidate.version.tolerance
    wrong = [error for error in errors if not error <= limit]
    return f"output error {wrong[0]:.1e} is over {limit:.1e}" if wrong else ""
