"""Optimizes one program: passes first, then lowering, then a comparison with the original."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxopt.api.quality import (
    MAX_CALLS,
    Call,
    Quality,
    compare_models,
    flat_outputs,
    score_of,
)
from fxopt.api.request import Request
from fxopt.emit import OptimizedModule
from fxopt.errors import CalibrationError, CaptureError, InputError
from fxopt.frontend import Captured, another_size, batch_size, capture_program, with_batch
from fxopt.ir import Program
from fxopt.passes import Calibration, Context, Pass, batch_arguments
from fxopt.pipeline import (
    LOSSY,
    UNROUNDED,
    Lowered,
    LoweringJob,
    Outcome,
    PassManager,
    Version,
    exact_version,
    instruments_for,
    lossy_version,
    lower,
    plan,
    reduced_version,
    unrounded_version,
)
from fxopt.pipeline.lowering.candidate import describe
from fxopt.report import PassRecord
from fxopt.training import Trainer

# Beyond this, bfloat16 is no rounding any more: deep nets drift by 0.5 % in it.
_REDUCED_DRIFT = 0.1


@dataclass(frozen=True)
class Subject:
    """What is optimized: a model or a part of one.

    Attributes:
        name: For the report.
        model: The original as a module, in eval mode; never changed.
        program: It, captured.
        inputs: Example inputs, as positional and keyword arguments.
        calibration: Batches for it, as the user's iterable yields them.
        training: Trains it; None for parts, since the user's data are for the whole.
        captured: What it and its program yield for ``inputs``, where that is known.
    """

    name: str
    model: nn.Module
    program: Program
    inputs: Call
    calibration: Any = None
    training: Trainer | None = None
    captured: Captured | None = None


@dataclass(frozen=True)
class Optimized:
    """What came of a subject.

    Attributes:
        module: The emitted module.
        program: The program that it runs.
        records: What became of each pass.
        lowered: Where it runs, and its latency.
        quality: How far ``module`` is from the original.
        score_before: Score of the original, where there is an ``evaluate``.
        score_after: Score of ``module``, where there is an ``evaluate``.
    """

    module: OptimizedModule
    program: Program
    records: tuple[PassRecord, ...]
    lowered: Lowered
    quality: Quality
    score_before: float | None = None
    score_after: float | None = None


def optimize_subject(subject: Subject, request: Request) -> Optimized:
    """Runs the passes of ``request`` on a subject and lowers what comes out.

    Raises:
        PlanError: The passes cannot be ordered.
        InputError: Calibration data or ``evaluate`` cannot be used.
    """
    examples = example_batches(subject)
    calibration = _calibration(subject)
    before = None if request.evaluate is None else score_of(request.evaluate, subject.model)
    outcome = _run_passes(subject, request, examples, calibration, before)
    original = exact_version(outcome.exact, outcome.reference)
    versions = _versions(outcome, original, examples, request)
    if _is_taught(subject, outcome, request):
        # what has learned nothing is no answer, however fast it is
        versions = [v for v in versions if v.name in (UNROUNDED, LOSSY)]
    gate = _Gate(subject, request, before, list(_calls(subject, calibration)))
    lowered = lower(versions, _job(subject, request, examples, gate))
    records = _settled(outcome.records, lowered, versions, request.passes)
    chosen = next(v for v in versions if v.name == lowered.version)
    return Optimized(
        module=lowered.module,
        program=chosen.program,
        records=records,
        lowered=lowered,
        quality=gate.quality(lowered.module),
        score_before=before,
        score_after=gate.score(lowered.module),
    )


def _versions(
    outcome: Outcome, original: Version, examples: Sequence[Sequence[Any]], request: Request
) -> list[Version]:
    """What may be lowered, from the exact program to what all passes together have made.

    Rounding may not pay for what structural passes have left, so they race without it, too. Where
    a loss is allowed, be it by ``max_drift``, ``max_drop`` or a lossy pass, the exact program
    may run in a lower precision too.
    """
    if outcome.program is not outcome.exact:
        lossy = lossy_version(outcome.program, original, outcome.outputs, request.max_drift)
        reduced = reduced_version(original, lossy.tolerance)
        if outcome.unrounded in (outcome.exact, outcome.program):
            return [original, reduced, lossy]
        unrounded = unrounded_version(
            outcome.unrounded, lossy, original, examples, request.max_drift
        )
        return [original, reduced, unrounded, lossy]
    drift = request.max_drift
    if drift is None and request.max_drop:
        drift = _REDUCED_DRIFT  # the score decides
    return [original, reduced_version(original, drift)] if drift else [original]


def _is_taught(subject: Subject, outcome: Outcome, request: Request) -> bool:
    """Whether the program has learned from a teacher of the user's."""
    if subject.training is None or subject.training.settings.teacher is None:
        return False
    applied = {record.name for record in outcome.records if record.status == "applied"}
    return any(item.info.name in applied for item in request.passes if item.info.imitates)


def example_batches(subject: Subject) -> list[list[Any]]:
    """Flat example inputs: the user's, and where the batch is symbolic, at another size."""
    signature = subject.program.signature
    batches = [subject.inputs]
    size = batch_size(subject.inputs)
    if signature.batch and size is not None:
        batches.append(with_batch(subject.inputs, another_size(size)))
    return [signature.flatten(args, kwargs) for args, kwargs in batches]


def argument_names(model: nn.Module) -> list[str]:
    """Names of the positional parameters of a module's ``forward``."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds]


def _calibration(subject: Subject) -> Calibration | None:
    if subject.calibration is None:
        return None
    calibration = Calibration(subject.calibration, subject.program.signature)
    calibration.check()
    return calibration


def _run_passes(
    subject: Subject,
    request: Request,
    examples: Sequence[Sequence[Any]],
    calibration: Calibration | None,
    score: float | None,
) -> Outcome:
    facts = request.registry.facts
    holding = {name for name, fact in facts.items() if fact.holds(subject.program)}
    providers = {name: request.registry.providers(name) for name in facts}
    ordered = plan(request.passes, facts, holding, providers)
    context = Context(
        target=request.target,
        examples=examples,
        calibration=calibration,
        training=subject.training,
        teacher=_teacher(subject, request),
        seed=request.seed,
        progress=request.progress,
    )
    manager = PassManager(
        ordered,
        facts,
        context,
        max_drift=request.max_drift,
        max_drop=request.max_drop,
        evaluate=request.evaluate,
        score=score,
        argument_names=argument_names(subject.model),
        known=None if subject.captured is None else subject.captured.outputs,
        instruments=instruments_for(request.workdir, request.deadline, request.progress),
    )
    return manager.run(subject.program)


def _teacher(subject: Subject, request: Request) -> Program | None:
    """The user's own teacher, captured on the same inputs.

    Raises:
        InputError: No pass learns from it, it cannot be captured, or it yields something else than
            the model.
    """
    model = None if subject.training is None else subject.training.settings.teacher
    if model is None:
        return None
    if not any(item.info.imitates for item in request.passes):
        raise InputError("training: no pass learns from the teacher", hint="add distill to passes=")
    try:
        teacher = capture_program(model, *subject.inputs)
    except CaptureError as error:
        raise InputError(f"training: the teacher cannot be captured: {error}") from error
    theirs, own = (_shapes(each) for each in (teacher, subject.program))
    if theirs != own:
        raise InputError(
            f"training: the teacher yields {theirs}, the model {own}",
            hint="wrap the teacher in a module that yields what the model does",
        )
    return teacher


def _shapes(program: Program) -> list[tuple[str, ...]]:
    """Of the outputs; a batch of any size is a *."""
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    values = [node.meta["val"] for node in output.all_input_nodes]
    return [
        tuple(str(size) if isinstance(size, int) else "*" for size in value.shape)
        for value in values
        if isinstance(value, torch.Tensor)
    ]


class _Gate:
    """Says whether an emitted module keeps the limits that the caller set."""

    def __init__(
        self, subject: Subject, request: Request, before: float | None, calls: list[Call]
    ) -> None:
        self._subject, self._request = subject, request
        self._before, self._calls = before, calls
        captured = subject.captured
        self._known = None if captured is None else flat_outputs(captured.expected)
        self._qualities: WeakKeyDictionary[nn.Module, Quality] = WeakKeyDictionary()
        self._scores: WeakKeyDictionary[nn.Module, float] = WeakKeyDictionary()

    def __call__(self, module: OptimizedModule, outputs: Any = None) -> str | None:
        """Why ``module`` must not be used; None when it may.

        Args:
            module: An emitted module.
            outputs: What it returned for the example call, where that is known.

        Raises:
            CalibrationError: The original does not take the calibration data.
        """
        try:
            return self._excess(module, outputs)
        except CalibrationError:
            raise
        except Exception as failure:  # noqa: BLE001 - it fails where the original does not
            return f"it fails on your data: {describe(failure)}"

    def _excess(self, module: OptimizedModule, outputs: Any) -> str | None:
        limit, drift = self._request.max_drift, self.quality(module, outputs).drift
        if limit is not None and not drift <= limit:
            return f"drift {drift:.2%} is over max_drift {limit:.2%}"
        score, most = self.score(module), self._request.max_drop
        if score is None or self._before is None or most is None:
            return None
        drop = self._before - score
        return None if drop <= most else f"the score drops by {drop:.4g}, over max_drop {most:.4g}"

    def quality(self, module: OptimizedModule, outputs: Any = None) -> Quality:
        """How far a module is from the original on the example and calibration data, once."""
        if module not in self._qualities:
            actual = None if outputs is None else flat_outputs(outputs)
            known = (self._known, actual)
            quality = compare_models(self._subject.model, module, self._calls, known)
            self._qualities[module] = quality
        return self._qualities[module]

    def score(self, module: OptimizedModule) -> float | None:
        """The user's score of a module, computed once."""
        if self._request.evaluate is None:
            return None
        if module not in self._scores:
            self._scores[module] = score_of(self._request.evaluate, module)
        return self._scores[module]


def _job(
    subject: Subject, request: Request, examples: Sequence[Sequence[Any]], gate: _Gate
) -> LoweringJob:
    args, kwargs = subject.inputs
    return LoweringJob(
        name=subject.name,
        target=request.target,
        backends=request.backends,
        examples=examples,
        original=lambda: subject.model(*args, **kwargs),
        argument_names=argument_names(subject.model),
        accept=gate,
        isolation=request.isolation,
        beside=request.beside,
        deadline=request.deadline,
        progress=request.progress,
    )


def _calls(subject: Subject, calibration: Calibration | None) -> Iterator[Call]:
    """The example call, then the calibration batches."""
    yield subject.inputs
    if calibration is not None:
        for _, batch in zip(range(MAX_CALLS), subject.calibration, strict=False):
            yield batch_arguments(batch)


def _settled(
    records: Sequence[PassRecord],
    lowered: Lowered,
    versions: Sequence[Version],
    passes: Sequence[Pass],
) -> tuple[PassRecord, ...]:
    """The records, with those passes marked as rolled back that the winning version is without."""
    if lowered.version == versions[-1].name:
        return tuple(records)
    reason = _why_reverted(lowered)
    rounding = {item.info.name for item in passes if item.info.rounds}
    return tuple(
        replace(record, status="rolled back", reason=reason)
        if not record.exact
        and record.status == "applied"
        and (lowered.version != UNROUNDED or record.name in rounding)
        else record
        for record in records
    )


def _why_reverted(lowered: Lowered) -> str:
    chosen = lowered.record.chosen
    lossy = [c for c in lowered.record.candidates if c.version == LOSSY]
    for candidate in sorted(lossy, key=lambda c: bool(c.reason)):  # what was raced tells most
        if candidate.milliseconds is not None:
            if candidate.reason:
                return f"{candidate.backend}: {candidate.reason}"
            return (
                f"not faster: {candidate.milliseconds:.3g} ms on {candidate.backend}, "
                f"{chosen.milliseconds or lowered.before.median:.3g} ms without"
            )
    reasons = [f"{c.backend}: {c.reason}" for c in lowered.record.candidates if c.reason]
    return "; ".join(reasons) or "no backend could run it"


def describe_inputs(subject: Subject) -> str:
    """The example inputs in words: ``1x3x224x224, any batch``."""
    leaves = pytree.tree_leaves(subject.inputs)
    shapes = ["x".join(map(str, t.shape)) or "scalar" for t in leaves if _is_tensor(t)]
    batch = "any batch" if subject.program.signature.batch else "fixed batch"
    return f"{', '.join(shapes)}, {batch}"


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
