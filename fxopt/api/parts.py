"""Optimizes what can be captured of a model that cannot be captured whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from fxopt.api.quality import MAX_CALLS, Call, Quality, compare_models, score_of
from fxopt.api.request import Request
from fxopt.api.whole import Optimized, Subject, optimize_subject
from fxopt.cost import Latency, measure
from fxopt.emit import OptimizedModule, emit_python
from fxopt.errors import CalibrationError, CaptureError, InputError
from fxopt.frontend import PartialCapture, capture_parts, own_inputs, structural_copy
from fxopt.ir import tensor_bytes
from fxopt.passes import Exact, batch_arguments
from fxopt.report import PassRecord, Report

# Each part has won a race of its own; such models often take seconds a call.
_SECONDS = 5.0

# Times the original's latency that the whole takes before that is more than noise.
_SLOWER = 1.05


def optimize_parts(
    model: nn.Module, inputs: Call, request: Request, why: CaptureError
) -> OptimizedModule:
    """Optimizes the largest submodules that can be captured, inside a copy of the model.

    Args:
        model: The user's model; not changed.
        inputs: Example inputs.
        request: What was asked for. Limits on drift and score are kept for the whole model: where
            the parts together break one, they are done again with exact passes alone.
        why: What kept the model from being captured whole, for the report.

    Raises:
        CaptureError: No part can be captured either.
        CalibrationError: There is no calibration batch, or one that the model does not take.
    """
    outcome = _Attempt(model, inputs, request)
    broken = outcome.breaks(request)
    if broken is not None:
        outcome = _Attempt(model, inputs, _exact(request))
        outcome.notes.append(f"lossy passes were rolled back on all parts: {broken}")
    if outcome.is_slower():
        outcome = _Attempt(model, inputs, request, install=False)
        outcome.notes.append("all parts stayed as they were: with them the whole was slower")
    return outcome.module.attach(outcome.report(model, request, why))


class _Attempt:
    """One try at all parts; or the model without any, where ``install`` is false."""

    def __init__(
        self, model: nn.Module, inputs: Call, request: Request, install: bool = True
    ) -> None:
        self.original = structural_copy(model)
        self.inputs = inputs
        self.capture = capture_parts(model, *inputs)
        self.parts: dict[str, Optimized] = {}
        self.notes: list[str] = []
        if request.training is not None:
            self.notes.append("nothing was trained: the model was not captured whole")
        calls = list(_calls(inputs, request.calibration))
        compare_models(self.original, self.original, calls[1:2])  # whether it takes the user's data
        if install:
            self._optimize(request)
        self.module = emit_python(self.capture.model)
        self.quality: Quality = compare_models(self.original, self.module, calls)
        self.scores = _scores(request, self.original, self.module)
        self.before, self.after = _latencies(self.original, self.module, inputs)

    def _optimize(self, request: Request) -> None:
        # limits and scores are the whole model's: a part has neither outputs nor a score to judge
        inner = replace(request, evaluate=None, max_drop=None, workdir=None)
        for name, program in self.capture.parts.items():
            request.progress(f"optimizing the part {name}")
            original = structural_copy(self.original.get_submodule(name))
            calibration = _PartBatches(self.original, name, request.calibration)
            batches = None if request.calibration is None else calibration
            subject = Subject(name, original, program, self.capture.inputs[name], batches)
            self.parts[name] = self._optimized(subject, inner)
        for name, part in self.parts.items():
            self.capture.install(name, part.module)

    def _optimized(self, subject: Subject, request: Request) -> Optimized:
        """A part; without lossy passes where the user's data do not reach it as the example did."""
        try:
            return optimize_subject(subject, request)
        except InputError as error:
            if subject.calibration is None:
                raise
            self.notes.append(f"{subject.name}: lossy passes were left out: {error.what}")
            return optimize_subject(replace(subject, calibration=None), _exact(request))

    def is_slower(self) -> bool:
        """Whether the whole takes longer than the original, by more than both vary."""
        before, after = self.before, self.after
        vary = max(before.spread, after.spread)
        return after.median > max(_SLOWER * before.median, before.median + vary)

    def breaks(self, request: Request) -> str | None:
        """Which limit of the request the whole model breaks, in words."""
        limit, drift = request.max_drift, self.quality.drift
        if limit is not None and not drift <= limit:
            return f"drift {drift:.2%} is over max_drift {limit:.2%}"
        before, after = self.scores
        if request.max_drop is None or before is None or after is None:
            return None
        drop = before - after
        return None if drop <= request.max_drop else f"the score drops by {drop:.4g}"

    def report(self, model: nn.Module, request: Request, why: CaptureError) -> Report:
        """The report of the whole model."""
        before = tensor_bytes([*model.parameters(), *model.buffers()])
        saved = sum(_saved_bytes(self.capture, name, part) for name, part in self.parts.items())
        return Report(
            model=type(model).__name__,
            target=str(request.target),
            inputs=f"{len(self.capture.parts)} parts captured",
            recipe=",".join(_recipe(self.parts.values())),
            passes=tuple(merge_records([part.records for part in self.parts.values()])),
            regions=tuple(part.lowered.record for part in self.parts.values()),
            latency_before=self.before.median,
            latency_after=self.after.median,
            latency_spread=self.after.spread,
            size_before=before,
            size_after=before - saved,
            drift=self.quality.drift,
            score_before=self.scores[0],
            score_after=self.scores[1],
            notes=(f"not captured whole: {why.what}", *self._stayed_python(), *self.notes),
        )

    def _stayed_python(self) -> Iterator[str]:
        for name, reason in self.capture.python:
            yield f"{name} stayed Python: {reason}"
        for name, program in self.capture.parts.items():
            yield from (f"{name}: {note}" for note in program.notes)


def _exact(request: Request) -> Request:
    """The request without lossy passes."""
    exact = tuple(item for item in request.passes if isinstance(item.info.fidelity, Exact))
    return replace(request, passes=exact, calibration=None)


def _calls(inputs: Call, batches: Iterable[Any] | None) -> Iterator[Call]:
    """The example call, then the calibration batches.

    Raises:
        CalibrationError: There is no batch.
    """
    yield inputs
    if batches is not None:
        found = [batch_arguments(batch) for batch in islice(batches, MAX_CALLS)]
        if not found:
            raise CalibrationError(
                "the calibration set is empty", hint="give an iterable of batches"
            )
        yield from found


class _PartBatches:
    """Calibration batches of a part: what reaches it when the model runs on the user's.

    Nothing is kept: each walk runs the model again.
    """

    def __init__(self, model: nn.Module, name: str, batches: Any) -> None:
        self._model, self._part, self._batches = model, model.get_submodule(name), batches

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            args, kwargs = own_inputs(batch_arguments(batch))
            seen: list[Any] = []
            hook = self._part.register_forward_pre_hook(
                lambda _, args, kwargs, seen=seen: seen.append(_as_batch(args, kwargs)),
                with_kwargs=True,
            )
            try:
                with torch.no_grad():
                    self._model(*args, **kwargs)
            finally:
                hook.remove()
            yield from seen


def _as_batch(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args and kwargs:
        raise InputError(
            "a part of the model is called with positional and keyword inputs mixed",
            hint="leave calibration= out: such a part cannot be calibrated yet",
        )
    return kwargs or args


def merge_records(groups: Sequence[Sequence[PassRecord]]) -> Iterator[PassRecord]:
    """One record per pass from those of several parts: sums, and the worst error."""
    texts = dict.fromkeys(record.text for group in groups for record in group)
    for text in texts:
        yield _merged([record for group in groups for record in group if record.text == text])


def _merged(records: Sequence[PassRecord]) -> PassRecord:
    order = ("applied", "rolled back", "unchanged", "skipped")
    first = min(records, key=lambda record: order.index(record.status))
    applied = [record for record in records if record.status == "applied"]
    return replace(
        first,
        nodes_before=sum(record.nodes_before for record in records),
        nodes_after=sum(record.nodes_after for record in records),
        seconds=sum(record.seconds for record in records),
        error=_worst([record.error for record in applied]),
        drift=_worst([record.drift for record in applied]),
        summary=f"in {len(applied)} of {len(records)} parts; {first.summary}",
        refused=tuple(line for record in records for line in record.refused),
    )


def _worst(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _recipe(parts: Any) -> list[str]:
    applied = [r.text for part in parts for r in part.records if r.status == "applied"]
    return list(dict.fromkeys(applied))


def _saved_bytes(capture: PartialCapture, name: str, part: Optimized) -> int:
    return capture.parts[name].weight_bytes() - part.program.weight_bytes()


def _scores(
    request: Request, original: nn.Module, module: nn.Module
) -> tuple[float | None, float | None]:
    if request.evaluate is None:
        return None, None
    return score_of(request.evaluate, original), score_of(request.evaluate, module)


def _latencies(original: nn.Module, module: nn.Module, inputs: Call) -> tuple[Latency, Latency]:
    args, kwargs = own_inputs(inputs)
    with torch.no_grad():
        latencies = measure(
            {
                "original": lambda: original(*args, **kwargs),
                "fast": lambda: module(*args, **kwargs),
            },
            seconds=_SECONDS,
        )
    return latencies["original"], latencies["fast"]
