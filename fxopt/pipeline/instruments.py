"""Instruments: they watch the pass manager at work, and may stop it."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fxopt.errors import InputError, ProgramError
from fxopt.ir import Program
from fxopt.passes import Pass, format_pass
from fxopt.pipeline.planner import Plan
from fxopt.report import PassRecord


class Instrument:
    """Base of all instruments: every hook does nothing; a subclass overrides those it wants.

    An instrument must not change programs. What it raises ends the run.
    """

    def begin(self, plan: Plan, program: Program) -> None:
        """Called once, before the first pass."""

    def should_run(self, item: Pass, program: Program) -> str | None:
        """Why ``item`` must not run; None to let it. It is skipped with that reason."""
        return None

    def before_pass(self, item: Pass, program: Program) -> None:
        """Called right before ``item`` runs on a copy of ``program``."""

    def check(self, item: Pass, before: Program, after: Program) -> str | None:
        """Why the result of ``item`` must not be used; None to accept it."""
        return None

    def after_pass(self, record: PassRecord, before: Program, after: Program | None) -> None:
        """Called when it is settled what became of a pass, also of one that was skipped.

        Args:
            record: Its status says whether ``after`` was accepted.
            before: The program before the pass.
            after: What the pass left, rolled back or not; it may be broken in the former case.
                None where it did not get as far as having a copy to work on.
        """

    def end(self, program: Program, records: Sequence[PassRecord]) -> None:
        """Called once, after the last pass."""


class Timing(Instrument):
    """Adds up where the time goes.

    Attributes:
        seconds: Wall clock time of each pass with its checks, by its text form.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def after_pass(self, record: PassRecord, before: Program, after: Program | None) -> None:
        self.seconds[record.text] = self.seconds.get(record.text, 0.0) + record.seconds

    def table(self) -> str:
        """One line a pass, slowest first, and the total."""
        ranked = sorted(self.seconds.items(), key=lambda item: -item[1])
        rows = [*ranked, ("total", sum(self.seconds.values()))]
        return "\n".join(f"{seconds:8.2f} s  {text}" for text, seconds in rows)


class Progress(Instrument):
    """Shows a line when a pass starts and when it is settled.

    Args:
        show: Takes a line.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._total = 0
        self._done = 0

    def begin(self, plan: Plan, program: Program) -> None:
        self._total, self._done = len(plan.passes), 0

    def before_pass(self, item: Pass, program: Program) -> None:
        self._show(f"[{self._done + 1}/{self._total}] {format_pass(item)} ...")

    def after_pass(self, record: PassRecord, before: Program, after: Program | None) -> None:
        self._done += 1
        text = record.reason if record.status in ("skipped", "rolled back") else record.summary
        outcome = f"{record.status}: {text}" if text else record.status
        self._show(f"[{self._done}/{self._total}] {record.text} {outcome}")


class Dumps(Instrument):
    """Writes the program after each pass into a folder, numbered, with the difference.

    ``00_captured.txt`` is the program at the start; ``01_cleanup.txt`` what the first pass left
    and ``01_cleanup.diff`` what it changed. Of a pass that was rolled back, what it left is in
    ``02_name.rejected.txt``, with the reason in its first line.

    Args:
        folder: Made if it is not there.

    Raises:
        InputError: It cannot be made.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._number = 0
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot make the folder {self._folder}: {error.strerror}",
                hint="give a workdir that can be written to",
            ) from error

    def begin(self, plan: Plan, program: Program) -> None:
        self._number = 0
        self._write("00_captured.txt", program.text())

    def after_pass(self, record: PassRecord, before: Program, after: Program | None) -> None:
        self._number += 1
        name = f"{self._number:02d}_{record.name}"
        if record.status == "applied" and after is not None:
            self._write(f"{name}.txt", after.text())
            self._write(f"{name}.diff", _diff(before.text(), after.text()))
        elif record.status == "rolled back" and after is not None:
            text = _text_of_suspect(after)
            self._write(f"{name}.rejected.txt", f"# {record.reason}\n{text}")
            self._write(f"{name}.rejected.diff", _diff(before.text(), text))

    def _write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text, encoding="utf-8")


class Verification(Instrument):
    """Makes sure that no pass gets at anything but its own copy of the program.

    The manager itself verifies what a pass leaves; this one verifies what it was given: before
    and after, the program at hand must be the same bit for bit. It costs a digest of all weights
    twice a pass, and is meant for those who write passes.
    """

    def __init__(self) -> None:
        self._digest = ""

    def before_pass(self, item: Pass, program: Program) -> None:
        self._digest = program.fingerprint()

    def check(self, item: Pass, before: Program, after: Program) -> str | None:
        try:
            before.verify()
        except ProgramError as error:
            return f"it broke the program before it: {'; '.join(error.violations)}"
        if before.fingerprint() != self._digest:
            return "it changed the program before it, not only its own copy"
        return None


class TimeLimit(Instrument):
    """Skips the passes that remain when time is up; one that runs is not interrupted.

    Args:
        deadline: The ``time.monotonic()`` at which time is up.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    @classmethod
    def of_seconds(cls, seconds: float) -> TimeLimit:
        """A limit that counts from now."""
        return cls(time.monotonic() + seconds)

    def should_run(self, item: Pass, program: Program) -> str | None:
        return "time limit reached" if time.monotonic() >= self._deadline else None


class SizeLimit(Instrument):
    """Rolls back a pass that makes the program too large.

    Args:
        nodes: Largest number of nodes.
        weight_bytes: Largest size of the weights.
    """

    def __init__(self, nodes: int | None = None, weight_bytes: int | None = None) -> None:
        self._nodes = nodes
        self._weight_bytes = weight_bytes

    def check(self, item: Pass, before: Program, after: Program) -> str | None:
        nodes, size = len(after.graph.nodes), after.weight_bytes()
        if self._nodes is not None and nodes > self._nodes:
            return f"size limit: {nodes} nodes, where {self._nodes} are allowed"
        if self._weight_bytes is not None and size > self._weight_bytes:
            return f"size limit: {size} bytes of weights, where {self._weight_bytes} are allowed"
        return None


def instruments_for(
    workdir: Path | None = None,
    deadline: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Instrument]:
    """The instruments of an ordinary run.

    Args:
        workdir: A folder for dumps; None for no dumps.
        deadline: The ``time.monotonic()`` at which time is up.
        progress: Takes a line to show.
    """
    chosen: list[Instrument] = []
    if deadline is not None:
        chosen.append(TimeLimit(deadline))
    if workdir is not None:
        chosen.append(Dumps(workdir))
    if progress is not None:
        chosen.append(Progress(progress))
    return chosen


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "before", "after", lineterm=""
    )
    return "".join(f"{line}\n" for line in lines)


def _text_of_suspect(program: Program) -> str:
    try:
        return program.text()
    except Exception as error:  # noqa: BLE001 - a broken program may fail to show in any way
        return f"(it cannot be shown: {type(error).__name__}: {error})\n"
