"""One way to run one version: built in this process, checked on the examples, and timed."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fxopt.cost import NO_MATTER, Latency
from fxopt.emit import OptimizedModule, emit
from fxopt.errors import FxoptError
from fxopt.ir import Program
from fxopt.pipeline.assignment import Assignment
from fxopt.pipeline.compare import compare
from fxopt.pipeline.lowering.job import LoweringJob
from fxopt.pipeline.lowering.version import REDUCED, UNROUNDED, Version
from fxopt.pipeline.precision import full_precision
from fxopt.report import CandidateRecord

# The caller asked for certain passes: running without them in a lower precision, or without those
# that round, has to be worth it. And what calls kernels one by one was faster than what compiles
# their calls in four of 45 int8 races, three times within the noise.
_HANDICAPPED = (REDUCED, UNROUNDED)
_HANDICAP = 1.03

_numbers = itertools.count()


@dataclass(eq=False)
class Candidate:
    """A version and an assignment of backends, and what has come of it so far.

    Attributes:
        version: What is lowered.
        assignment: Which backend takes what.
        record: For the report; its reason says why the candidate is out, where it is.
        module: The emitted module, once built and found right.
        outputs: What it returned for the first example when it was built.
        prepared: What that module will be, where all but compiling is done.
        trial: Its timings when it was tried elsewhere.
        turn: Those of a turn that all had who were built at the same time; empty after the race.
        latency: Once raced.
        beaten: Whether it was clearly slower than another one when it was tried elsewhere.
        right_elsewhere: Whether it is known to be right at the other examples' batch sizes.
        key: What the worker calls it; unique in this process.
    """

    version: Version
    assignment: Assignment
    record: CandidateRecord = field(init=False)
    module: OptimizedModule | None = None
    outputs: Any = None
    prepared: OptimizedModule | None = None
    trial: Latency | None = None
    turn: Sequence[float] = ()
    latency: Latency | None = None
    beaten: bool = False
    right_elsewhere: bool = False
    key: str = field(init=False)

    def __post_init__(self) -> None:
        placed = self.assignment.placed(self.version.program)
        self.record = CandidateRecord(self.assignment.label, self.version.name, placed=placed)
        self.key = f"{self.name} #{next(_numbers)}"

    @property
    def name(self) -> str:
        """Unique among the candidates of a job."""
        return f"{self.record.backend}/{self.version.name}"

    @property
    def median(self) -> float:
        """Milliseconds; infinite before the race."""
        return self.latency.median if self.latency is not None else float("inf")

    @property
    def merit(self) -> float:
        """Milliseconds, for ranking; infinite where it was not timed.

        What the passes made is preferred to what merely comes near, and compiled code likewise.
        """
        one_by_one = any(share.backend.info.node_by_node for share in self.assignment.shares)
        handicap = _HANDICAP if self.version.name in _HANDICAPPED or one_by_one else 1.0
        measured = self.record.milliseconds
        return handicap * (math.inf if measured is None else measured)

    @property
    def preference(self) -> float:
        """Merit, for what to go on with: one that is built already need not be the faster one."""
        return self.merit * (1.0 if self.module is not None else 1.0 + NO_MATTER)

    @property
    def raced(self) -> bool:
        """Whether it was timed in turns with others."""
        return self.latency is not None

    @property
    def measured(self) -> bool:
        """Whether it was timed at all."""
        return self.record.milliseconds is not None

    @property
    def builds_slowly(self) -> bool:
        """Whether building takes a multiple of what it takes others."""
        return any(share.backend.info.builds_slowly for share in self.assignment.shares)

    @property
    def hopeful(self) -> bool:
        """Whether it may still win, as far as is known."""
        return not self.record.reason and not self.beaten

    def timed(self, latency: Latency) -> None:
        """Notes the outcome of a race."""
        self.latency = latency
        self.note(milliseconds=latency.median, spread=latency.spread)

    def note(self, **changes: Any) -> None:
        """Changes fields of the record."""
        self.record = replace(self.record, **changes)

    def drop(self, reason: str, slower: bool = False) -> None:
        """Takes it out, for a reason; ``slower`` says that nothing else is wrong with it."""
        self.module = self.outputs = None
        self.note(reason=reason, slower=slower)

    def excess(self, *errors: float) -> str:
        """Which output error is beyond what its version may show; empty where none is."""
        limit = self.version.tolerance
        wrong = [error for error in errors if not error <= limit]
        return f"output error {wrong[0]:.1e} is over {limit:.1e}" if wrong else ""

    def call(self, flat: Sequence[Any]) -> Callable[[], object]:
        """Calls the module as the user does, on flat inputs."""
        assert self.module is not None
        module = self.module
        args, kwargs = arguments(self.version.program, flat)
        return lambda: module(*args, **kwargs)


def build(candidate: Candidate, job: LoweringJob) -> None:
    """Lowers, emits and runs a candidate on the first example; what fails drops out."""
    if not candidate.hopeful or candidate.module is not None:
        return
    if job.late:
        candidate.drop("time limit")
        return
    label, version = candidate.record.backend, candidate.version.name
    job.progress(f"lowering {job.name} ({version}) with {label}")
    start = time.perf_counter()
    try:
        candidate.module = candidate.prepared or _emitted(candidate, job)
        candidate.prepared = None
        candidate.outputs = _outputs(candidate, job.examples[0])
        error = _error(candidate, candidate.outputs, 0)
    except Exception as failure:  # noqa: BLE001 - a plugin may raise anything; it is reported
        candidate.drop(describe(failure))
    else:
        _note_kernels(candidate, error)
        if reason := candidate.excess(error):
            candidate.drop(reason)
    spent = time.perf_counter() - start
    candidate.note(seconds=candidate.record.seconds + spent)


def _emitted(candidate: Candidate, job: LoweringJob) -> OptimizedModule:
    program = candidate.assignment.applied(candidate.version.program, job.target)
    return emit(program, job.argument_names)


def output_error(candidate: Candidate, flat: Sequence[Any], index: int) -> float:
    """Relative output error of a built candidate on the example number ``index``."""
    return _error(candidate, _outputs(candidate, flat), index)


def _outputs(candidate: Candidate, flat: Sequence[Any]) -> Any:
    with torch.no_grad(), full_precision():
        return candidate.call(flat)()


def _error(candidate: Candidate, outputs: Any, index: int) -> float:
    flat_outputs = torch.utils._pytree.tree_leaves(outputs)
    reference = torch.utils._pytree.tree_leaves(list(candidate.version.reference[index]))
    return compare(flat_outputs, reference).error


def arguments(program: Program, flat: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Flat inputs as the user's positional and keyword arguments."""
    args, kwargs = torch.utils._pytree.tree_unflatten(list(flat), program.signature.in_spec)
    return args, kwargs


def describe(error: Exception) -> str:
    """An exception in one line."""
    first = str(error).strip().splitlines()[:1] or [""]
    return error.what if isinstance(error, FxoptError) else f"{type(error).__name__}: {first[0]}"


def _note_kernels(candidate: Candidate, error: float) -> None:
    assert candidate.module is not None
    lowered = candidate.module.lowered()
    counts = sum((module.precisions() for module in lowered), Counter[str]())
    fallbacks = tuple(line for module in lowered for line in module.fallbacks())
    candidate.note(error=error, precisions=dict(counts), fallbacks=fallbacks)
