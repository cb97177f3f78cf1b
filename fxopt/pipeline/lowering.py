"""Lowering: every way to run a program that is on offer is tried, and the fastest one kept."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fxopt.backends import Backend, LoweredModule, Region, splice, whole_region
from fxopt.cost import Latency, Target, measure
from fxopt.emit import REGION, OptimizedModule, emit
from fxopt.errors import FxoptError
from fxopt.ir import Program
from fxopt.passes import Exact
from fxopt.pipeline.compare import compare
from fxopt.report import CandidateRecord, RegionRecord

ORIGINAL = "original"
EXACT = "exact"

# Integer kernels round where the simulation of a lossy program does not, so the lowered program
# may drift from the original a little more than the simulated one, but not more than this.
_LOSSY_SLACK = 1.25

# A candidate that takes so many times as long as the best one gets no further turns in the race.
_HOPELESS = 1.5


@dataclass(frozen=True)
class Version:
    """A program that may be lowered.

    Attributes:
        name: ``exact`` or ``lossy``.
        program: What to lower.
        tolerance: Relative output error against ``reference`` that lowering may show.
        reference: Flat outputs to compare with, one tuple per example.
    """

    name: str
    program: Program
    tolerance: float
    reference: Sequence[Sequence[Any]]

    @property
    def exact(self) -> bool:
        """Whether only rounding sets it apart from the original."""
        return self.name == EXACT


@dataclass(frozen=True)
class LoweringJob:
    """What lowering needs to know.

    Attributes:
        name: What the report calls the region.
        target: What to lower for.
        backends: What may be tried.
        examples: Flat example inputs, one or two batch sizes; the first one is timed.
        original: Calls the user's own model on the first example.
        argument_names: Names of the positional arguments of the user's ``forward``.
        accept: Says why an emitted module must not be used after all; None when it may.
        deadline: ``time.monotonic()`` at which no further candidate is begun.
        progress: Takes a line to show.
    """

    name: str
    target: Target
    backends: Sequence[Backend]
    examples: Sequence[Sequence[Any]]
    original: Callable[[], object]
    argument_names: Sequence[str] = ()
    accept: Callable[[OptimizedModule], str | None] = lambda module: None
    deadline: float | None = None
    progress: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Lowered:
    """The outcome.

    Attributes:
        module: The emitted module.
        version: Name of the version that it runs.
        record: For the report.
        before: Latency of the original.
        after: Latency of ``module``.
    """

    module: OptimizedModule
    version: str
    record: RegionRecord
    before: Latency
    after: Latency


@dataclass(eq=False)
class _Candidate:
    version: Version
    record: CandidateRecord
    module: OptimizedModule | None = None
    latency: Latency | None = field(default=None)

    @property
    def name(self) -> str:
        return f"{self.record.backend}/{self.version.name}"


def exact_version(program: Program, reference: Sequence[Sequence[Any]]) -> Version:
    """A program whose lowering may differ from the original's outputs by rounding alone."""
    return Version(EXACT, program, _rounding(reference), reference)


def lossy_version(
    program: Program, original: Version, examples: Sequence[Sequence[Any]], limit: float | None
) -> Version:
    """A program that drifts from ``original``, and whose lowering may drift little more."""
    drifts = [
        compare(run_flat(program, flat), reference).error
        for flat, reference in zip(examples, original.reference, strict=True)
    ]
    tolerance = _LOSSY_SLACK * max(drifts) + original.tolerance
    if limit is not None:
        tolerance = min(tolerance, limit)
    return Version("lossy", program, tolerance, original.reference)


def lower(versions: Sequence[Version], job: LoweringJob) -> Lowered:
    """Tries each version on each backend and keeps the fastest one that is right.

    The last of ``versions`` is what the passes made; the ones before it are what it can be
    reverted to. The original model runs in the same race, so the result is never slower than
    that: when nothing beats it, the program is emitted as it is.
    """
    candidates = [
        _build(version, variant, job)
        for version in versions
        for backend in job.backends
        for variant in backend.variants(job.target, version.exact)
    ]
    plain = _plain(versions[0], candidates, job)
    if plain not in candidates:
        candidates.append(plain)
    timed = [candidate for candidate in candidates if candidate.module is not None]
    before = _race(timed, job)
    timed.sort(key=lambda candidate: _median(candidate))
    winner = _first_right(timed, plain, before, job)
    return _outcome(winner, candidates, before, job)


def _plain(version: Version, candidates: Sequence[_Candidate], job: LoweringJob) -> _Candidate:
    """The program as it is: what is kept when nothing on offer beats the original."""
    native = {backend.label for backend in job.backends if backend.info.native}
    for candidate in candidates:
        is_native = candidate.record.backend in native and candidate.module is not None
        if candidate.version is version and is_native:
            return candidate
    record = CandidateRecord("torch", version.name)
    return _Candidate(version, record, emit(version.program, job.argument_names))


def _build(version: Version, backend: Backend, job: LoweringJob) -> _Candidate:
    name, start = backend.label, time.perf_counter()
    candidate = _Candidate(version, CandidateRecord(name, version.name))
    late = job.deadline is not None and time.monotonic() > job.deadline
    reason = "time limit" if late else backend.unsupported(version.program, job.target)
    if reason is None:
        job.progress(f"lowering {job.name} ({version.name}) with {name}")
        try:
            candidate.module, reason = _emit_lowered(version, backend, job)
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; it is reported
            reason = _describe(error)
    candidate.record = replace(
        candidate.record, reason=reason or "", seconds=time.perf_counter() - start
    )
    if candidate.module is not None and reason is None:
        _examine(candidate, job)
    else:
        candidate.module = None
    return candidate


def _emit_lowered(
    version: Version, backend: Backend, job: LoweringJob
) -> tuple[OptimizedModule | None, str | None]:
    if backend.info.native:
        return emit(version.program, job.argument_names), None
    program = Program(_copy_sharing(version.program), version.program.signature)
    region = whole_region(program)
    if region is None:
        return None, "the program computes nothing, or takes or gives something but tensors"
    _splice_lowered(program, region, backend, job.target)
    return emit(program, job.argument_names), None


def _splice_lowered(program: Program, region: Region, backend: Backend, target: Target) -> None:
    splice(program, region, LoweredModule(region.program, backend, target), REGION)


def _copy_sharing(program: Program) -> torch.fx.GraphModule:
    """A copy whose graph may be changed, with the same modules and weights."""
    copied: torch.fx.GraphModule = torch.fx.GraphModule(program.module, _copy_graph(program))
    return copied.train(program.module.training)


def _copy_graph(program: Program) -> torch.fx.Graph:
    graph = torch.fx.Graph()
    output = graph.graph_copy(program.graph, {})
    graph.output(output)
    return graph


def _examine(candidate: _Candidate, job: LoweringJob) -> None:
    """Runs a candidate on the first example, compares, and notes which kernels it got."""
    assert candidate.module is not None
    try:
        error = _error(candidate, job.examples[0], 0)
    except Exception as failure:  # noqa: BLE001 - a plugin may raise anything; it is reported
        candidate.record = replace(candidate.record, reason=_describe(failure))
        candidate.module = None
        return
    candidate.record = replace(
        candidate.record, error=error, precisions=_precisions(candidate.module)
    )
    if not error <= candidate.version.tolerance:
        reason = f"output error {error:.1e} is over {candidate.version.tolerance:.1e}"
        candidate.record = replace(candidate.record, reason=reason)
        candidate.module = None


def _race(timed: Sequence[_Candidate], job: LoweringJob) -> Latency:
    calls: dict[str, Callable[[], object]] = {ORIGINAL: job.original}
    for candidate in timed:
        calls[candidate.name] = _caller(candidate, job.examples[0])
    job.progress(f"measuring {len(calls)} candidates for {job.name}")
    with torch.no_grad():
        # with one candidate there is nothing to decide: two rounds are enough to report
        rounds = 5 if len(timed) > 1 else 2
        latencies = measure(calls, rounds=rounds, drop_above=_HOPELESS)
    for candidate in timed:
        latency = latencies[candidate.name]
        candidate.latency = latency
        candidate.record = replace(
            candidate.record, milliseconds=latency.median, spread=latency.spread
        )
    return latencies[ORIGINAL]


def _first_right(
    timed: Sequence[_Candidate], plain: _Candidate, before: Latency, job: LoweringJob
) -> _Candidate:
    """The fastest candidate that is also right at the second batch size and is accepted."""
    for candidate in timed:
        if candidate is plain or _median(candidate) > before.median:
            break
        reason = _second_batch(candidate, job)
        if reason is None and candidate.module is not None:
            reason = job.accept(candidate.module)
        if reason is None:
            return candidate
        candidate.record = replace(candidate.record, reason=reason)
    return plain


def _second_batch(candidate: _Candidate, job: LoweringJob) -> str | None:
    for index, flat in list(enumerate(job.examples))[1:]:
        try:
            error = _error(candidate, flat, index)
        except Exception as failure:  # noqa: BLE001 - a plugin may raise anything; it is reported
            return f"at another batch size: {_describe(failure)}"
        if not error <= candidate.version.tolerance:
            return f"output error {error:.1e} at another batch size"
    return None


def _outcome(
    winner: _Candidate, candidates: Sequence[_Candidate], before: Latency, job: LoweringJob
) -> Lowered:
    assert winner.module is not None
    assert winner.latency is not None
    operations = sum(n.op.startswith("call_") for n in winner.version.program.nodes)
    ranked = sorted(candidates, key=_median)
    record = RegionRecord(
        job.name, operations, winner.record, tuple(candidate.record for candidate in ranked)
    )
    return Lowered(winner.module, winner.version.name, record, before, winner.latency)


def _caller(candidate: _Candidate, flat: Sequence[Any]) -> Callable[[], object]:
    module = candidate.module
    assert module is not None
    args, kwargs = arguments(candidate.version.program, flat)
    return lambda: module(*args, **kwargs)


def arguments(program: Program, flat: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Flat inputs as the user's positional and keyword arguments."""
    args, kwargs = torch.utils._pytree.tree_unflatten(list(flat), program.signature.in_spec)
    return args, kwargs


def _error(candidate: _Candidate, flat: Sequence[Any], index: int) -> float:
    with torch.no_grad():
        outputs = _caller(candidate, flat)()
    flat_outputs = torch.utils._pytree.tree_leaves(outputs)
    reference = torch.utils._pytree.tree_leaves(list(candidate.version.reference[index]))
    return compare(flat_outputs, reference).error


def _precisions(module: OptimizedModule) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for lowered in module.lowered():
        counts += lowered.precisions()
    return dict(counts)


def _median(candidate: _Candidate) -> float:
    return candidate.latency.median if candidate.latency is not None else float("inf")


def _rounding(outputs: Sequence[Sequence[Any]]) -> float:
    tensors = [o for flat in outputs for o in flat if isinstance(o, torch.Tensor)]
    return max((Exact().tolerance(t.dtype) for t in tensors), default=0.0)


def run_flat(program: Program, flat: Sequence[Any]) -> tuple[Any, ...]:
    """The flat outputs of a program, computed without gradients."""
    with torch.no_grad():
        return program(*flat)


def _describe(error: Exception) -> str:
    first = str(error).strip().splitlines()[:1] or [""]
    return error.what if isinstance(error, FxoptError) else f"{type(error).__name__}: {first[0]}"
