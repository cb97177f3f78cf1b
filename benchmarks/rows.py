"""Results of the latency study: one row a candidate, kept in a JSON file that can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PRECISIONS = ("fp32", "bf16", "int8")

RIVAL, OWN, TORCH_ONLY = "rival", "fxopt", "fxopt torch-only"


@dataclass
class Row:
    """One candidate on one model.

    Attributes:
        model: Name in the zoo.
        batch: Size of the batch.
        precision: ``fp32``, ``bf16`` or ``int8``: what the candidate is compared with.
        candidate: Its name.
        kind: ``rival``, ``fxopt`` (all that is installed) or ``fxopt torch-only``.
        torch: Whether torch and torchao are all that it needs.
        milliseconds: Median latency; 0 where there is none.
        spread: Half the distance between the quartiles.
        error: Relative output error against eager fp32.
        build_seconds: From the model to the first output.
        remark: Why there is no latency.
        report: Of fxopt: what its report says of passes and regions.
        revision: Commit of fxopt that the case ran on; empty where it is not known.
        duels: Of fxopt: its latency over that of a rival that it was timed against alone.
        machine: Where the case ran: its place among the machines of the results.
    """

    model: str
    batch: int
    precision: str
    candidate: str
    kind: str = RIVAL
    torch: bool = False
    milliseconds: float = 0.0
    spread: float = 0.0
    error: float = 0.0
    build_seconds: float = 0.0
    remark: str = ""
    report: dict[str, Any] = field(default_factory=dict)
    revision: str = ""
    duels: dict[str, float] = field(default_factory=dict)
    machine: int = 0

    @property
    def measured(self) -> bool:
        return self.milliseconds > 0


@dataclass
class Results:
    """All that one study found.

    A precision of a case is of one run on one machine; others may be of different ones, since a
    study takes hours, and what is judged are ratios within a precision.

    Attributes:
        machines: Where it ran, see ``machine.py``.
        rows: The candidates, in the order in which they were built.
        peaks: What each machine can do, by its place among them, see ``peak.py``.
        notes: What else a reader should know of the run, written into the file by hand.
    """

    machines: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    peaks: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def place(self, machine: dict[str, Any]) -> int:
        """The place of a machine among those that the study ran on, of which it is one now."""
        if machine not in self.machines:
            self.machines.append(machine)
        return self.machines.index(machine)

    def cases(self) -> list[tuple[str, int]]:
        """Models and batch sizes, in the order in which they were run."""
        return list(dict.fromkeys((row.model, row.batch) for row in self.rows))

    def revisions(self) -> dict[tuple[str, int], list[str]]:
        """The commits and machines that rows were measured on, each with its cases."""
        found: dict[tuple[str, int], list[str]] = {}
        for row in self.rows:
            case = f"{row.model}, batch {row.batch}"
            cases = found.setdefault((row.revision, row.machine), [])
            cases += [case] if case not in cases else []
        return found

    def of(self, model: str, batch: int, machine: int | None = None) -> list[Row]:
        """The rows of a case, on all machines or on one."""
        rows = [row for row in self.rows if (row.model, row.batch) == (model, batch)]
        return [row for row in rows if machine in (None, row.machine)]

    def beside(self, own: Row) -> list[Row]:
        """The rows of the same case and machine, itself among them."""
        return self.of(own.model, own.batch, own.machine)

    def has(self, model: str, batch: int, candidates: Iterable[str]) -> bool:
        return set(candidates) <= {row.candidate for row in self.of(model, batch)}

    def put(self, rows: list[Row], precisions: Collection[str]) -> None:
        """Replaces all rows of a case in the precisions that were run: those are never mixed.

        Args:
            rows: Of one run of one case.
            precisions: What it was about; others have the reference alone, of which errors are
                taken, and keep the rows that they had.
        """
        case = (rows[0].model, rows[0].batch)
        others = [row for row in self.of(*case) if row.precision not in precisions]
        known = {row.precision for row in others}
        new = [row for row in rows if row.precision in precisions or row.precision not in known]
        self.rows = [r for r in self.rows if (r.model, r.batch) != case] + others + new

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".part")
        fresh.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(fresh, path)


def load(path: Path) -> Results:
    stored = json.loads(path.read_text())
    rows = [Row(**row) for row in stored["rows"]]
    return Results(stored["machines"], rows, stored["peaks"], stored["notes"])
