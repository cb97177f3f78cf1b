"""What a run leaves behind for the report: plain data, no live objects."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

Status = Literal["applied", "unchanged", "skipped", "rolled back"]


@dataclass(frozen=True)
class PassRecord:
    """What became of one pass.

    Attributes:
        name: Name of the pass.
        text: Its text form, settings included.
        exact: Whether it declares itself exact.
        status: applied, unchanged (ran, nothing to do), skipped (did not run) or rolled back.
        reason: Why it was skipped or rolled back, naming the place.
        nodes_before: Nodes in the graph before it.
        nodes_after: Nodes in the graph after it.
        seconds: Wall clock time, checks included.
        error: Relative output error against the program before the pass; None if not compared.
        drift: Relative output error against the original model; None if not compared.
        score: The user's ``evaluate`` after it; None where that was not asked for.
        summary: What it did, in a few words.
        refused: Candidates that it left as they were, with reasons.
        details: Numbers and texts for the machine-readable report.
        bytes_before: Bytes of the weights before it.
        bytes_after: Bytes of the weights after it, at their own precision.
        work_before: Multiply-adds of the example before it; None if it cannot change them.
        work_after: Multiply-adds of the example after it.
    """

    name: str
    text: str
    exact: bool
    status: Status
    reason: str = ""
    nodes_before: int = 0
    nodes_after: int = 0
    seconds: float = 0.0
    error: float | None = None
    drift: float | None = None
    score: float | None = None
    summary: str = ""
    refused: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    work_before: int | None = None
    work_after: int | None = None


@dataclass(frozen=True)
class CandidateRecord:
    """One way to run a region that was tried.

    Attributes:
        backend: Name of the backend.
        version: Which program was lowered: ``exact``, ``reduced``, ``unrounded`` or
            ``lossy``.
        milliseconds: Median latency; None where it could not be measured.
        spread: Half the distance between the quartiles, in milliseconds.
        error: Relative output error against the program that was lowered.
        precisions: How many heavy operations ran in which precision, such as ``{"int8": 54}``.
        fallbacks: Layers that were to run in a lower precision than they do, each in a line.
        reason: Why it is out of the race, where it is.
        slower: Whether that is for being slower alone, as measured or as expected.
        seconds: Time that building it took.
        placed: What each backend takes, a line a region; empty where one takes all.
        outside: For each operation that runs as it stands, what it is and why: ``aten.rand draws
            random numbers``.
    """

    backend: str
    version: str = "exact"
    milliseconds: float | None = None
    spread: float = 0.0
    error: float | None = None
    precisions: dict[str, int] = field(default_factory=dict)
    fallbacks: tuple[str, ...] = ()
    reason: str = ""
    slower: bool = False
    seconds: float = 0.0
    placed: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


@dataclass(frozen=True)
class RegionRecord:
    """Where a region of the program runs, and what else was tried.

    Attributes:
        name: ``whole net``, or the qualified name of the part.
        operations: Nodes in it.
        chosen: The candidate that won.
        candidates: All that were tried, fastest first.
    """

    name: str
    operations: int
    chosen: CandidateRecord
    candidates: tuple[CandidateRecord, ...] = ()


@dataclass(frozen=True)
class Report:
    """What was done, what was refused and why, and what it cost in quality.

    Attributes:
        model: Name of the model.
        target: The machine, in words.
        inputs: The example inputs, in words, such as ``1x3x224x224, any batch``.
        recipe: Text form of the passes that were applied; feed it to ``passes=`` to repeat them.
        passes: What became of each pass, in the order in which they ran.
        regions: Where each region runs.
        latency_before: Median of the user's own model in milliseconds; None if not measured.
        latency_after: Median of the optimized module in milliseconds; None if not measured.
        latency_spread: Half the distance between the quartiles of ``latency_after``.
        size_before: Bytes of weights of the original.
        size_after: Bytes of weights that the optimized module stores, at its weights' precision.
        drift: Relative output error of the optimized module against the original.
        same_top1: Calibration samples with the same largest output, and how many there were.
        score_before: ``evaluate`` of the original.
        score_after: ``evaluate`` of the optimized module.
        notes: What else the user should know, such as what stayed Python, or was left out.
        seconds: Time that all of it took.
    """

    model: str
    target: str
    inputs: str
    recipe: str
    passes: tuple[PassRecord, ...] = ()
    regions: tuple[RegionRecord, ...] = ()
    latency_before: float | None = None
    latency_after: float | None = None
    latency_spread: float = 0.0
    size_before: int = 0
    size_after: int = 0
    drift: float | None = None
    same_top1: tuple[int, int] | None = None
    score_before: float | None = None
    score_after: float | None = None
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def finished(self, seconds: float) -> Report:
        """The same report with the time that all of it took."""
        return replace(self, seconds=seconds)

    def __str__(self) -> str:
        from fxopt.report.text import render_text  # rich is heavy: only when shown

        return render_text(self)
