"""The public entry: a trained model in, an optimized one with a report out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx, nn

from fxopt.api.collapse import with_warning
from fxopt.api.parts import optimize_parts
from fxopt.api.request import Request, make_request
from fxopt.api.saving import Source, keep_source, source_of
from fxopt.api.whole import (
    Optimized,
    Subject,
    argument_names,
    describe_inputs,
    optimize_subject,
)
from fxopt.api.workers import start_early
from fxopt.emit import OptimizedModule, emit_python, guarded, unshare
from fxopt.errors import CaptureError, InputError
from fxopt.frontend import (
    buffers_restored,
    capture_compared,
    capture_program,
    check_model,
    check_place,
    normalize_inputs,
    random_state_restored,
    set_apart,
    structural_copy,
)
from fxopt.ir import tensor_bytes
from fxopt.passes import Pass, format_passes, placed
from fxopt.pipeline import full_precision
from fxopt.registry import default_registry
from fxopt.report import Report, save_report
from fxopt.training import Training


def optimize(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    target: str = "cpu",
    passes: str | Sequence[Pass] | None = None,
    latency_ms: float | None = None,
    calibration: Iterable[Any] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    max_drop: float | None = None,
    max_drift: float | None = None,
    training: Training | None = None,
    backends: Sequence[str] | None = None,
    time_limit: float | None = None,
    workdir: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> OptimizedModule:
    """Makes a trained model faster on this machine, and says how and at what cost.

    The model is not changed. Weights that no pass touches are shared with it, not copied.

    Lossy passes without a limit (``max_drop`` or ``max_drift``) may cost any amount of quality. A
    warning, and a note in the report, tell where outputs have little to do with the original's.

    Args:
        model: A trained module; it is optimized for inference.
        example_inputs: A tensor, a tuple of positional inputs, or a dict of keyword inputs. When
            missing, what the model itself offers is taken (``example_input_array``,
            ``dummy_inputs``, timm's ``pretrained_cfg``); without any, nothing can be captured, and
            the report says so.
        target: ``"cpu"`` or ``"cuda"``; the model and its inputs have to be there.
        passes: A text such as ``"fold_bn,quantize{calibrator=histogram}"``, or pass instances;
            they are put in order by what they declare. By default every installed pass that is
            exact, so that outputs differ from the original's by rounding alone.
        latency_ms: Not there yet: the latency that a search has to reach.
        calibration: Any iterable of batches, each a tensor, a tuple of positional or a dict of
            keyword inputs, without labels. Tensors are moved to where the example inputs lie.
        evaluate: Takes a module and returns a score, higher is better.
        max_drop: How much lower than the original's the score may be, in the score's units. Where
            it is more than zero, what the passes leave in float may be computed in bfloat16.
        max_drift: How large the relative output error against the original may be; likewise.
        training: Data and how to train on them, for passes that train: ``quantize{training=lsq}``.
            Checkpoints go to ``workdir``.
        backends: Names of the backends that may be tried; by default all that are installed.
        time_limit: Seconds after which no further pass or lowering is begun.
        workdir: A folder for numbered dumps of the program and ``report.json``.
        seed: For whatever is random.
        progress: Takes a line to show while it works.

    Returns:
        A ``torch.fx.GraphModule`` that is called as the model is, with ``.report``, ``.recipe``.

    Raises:
        InputError: An argument cannot be used.
        NotYetError: An argument is not implemented yet.
        PlanError: The passes cannot be put in an order.
        CaptureError: Nothing of the model can be captured.
        BackendError: A backend in ``backends`` is not installed.
    """
    start = time.perf_counter()
    check_model(model)
    start_early(backends)
    request = make_request(
        default_registry(),
        target=target,
        passes=passes,
        latency_ms=latency_ms,
        calibration=calibration,
        evaluate=evaluate,
        max_drop=max_drop,
        max_drift=max_drift,
        training=training,
        backends=backends,
        time_limit=time_limit,
        workdir=workdir,
        seed=seed,
        progress=progress,
    )
    inputs = normalize_inputs(model, example_inputs)
    check_place(model, inputs, request.target.device)
    request = replace(request, calibration=placed(request.calibration, inputs))
    with random_state_restored(seed), buffers_restored(model):
        if request.training is not None:
            request.training.check()
        fast = _dispatch(model, inputs, request)
    report = with_warning(fast.report, request)
    _set_apart(fast, model)
    fast.attach(report.finished(time.perf_counter() - start))
    if request.workdir is not None:
        save_report(fast.report, request.workdir / "report.json")
    return fast


def capture(model: nn.Module, example_inputs: Any = None) -> fx.GraphModule:
    """The captured module alone: trainable, nothing optimized, nothing lowered.

    Its weights are copies, so that training it leaves the model as it is.

    Args:
        model: The module to capture.
        example_inputs: As for :func:`optimize`.

    Raises:
        InputError: There are no example inputs, or they do not fit.
        CaptureError: The model cannot be captured whole; names the operation and the line.
    """
    check_model(model)
    inputs = normalize_inputs(model, example_inputs)
    if inputs is None:
        raise InputError(
            "capture needs example inputs, and the model offers none",
            hint="pass example_inputs=(tensor, ...)",
        )
    program = capture_program(model, *inputs)
    root, graph = guarded(program, argument_names(model))
    captured = fx.GraphModule(root, graph, "CapturedModule")
    unshare(captured)
    return captured.train(model.training)


def _set_apart(fast: OptimizedModule, model: nn.Module) -> None:
    """Lets what is done to ``fast``, and to what it is saved from, leave the user's model alone."""
    source = source_of(fast)
    set_apart([fast] if source is None else [fast, source.program.module], model)


def _dispatch(model: nn.Module, inputs: Any, request: Request) -> OptimizedModule:
    """Captures the model whole, or in parts, or not at all for want of inputs."""
    twin = structural_copy(model)
    if inputs is None:
        return _without_inputs(twin, request)
    args, kwargs = inputs
    request.progress("capturing")
    try:
        with full_precision():  # what it computes is compared with
            captured = capture_compared(model, args, kwargs, request.seed)
    except CaptureError as error:
        if next(model.children(), None) is None:
            raise  # there are no parts to try, and this says why
        return optimize_parts(model, inputs, request, error)
    subject = Subject(
        name="whole net",
        model=twin,
        program=captured.program,
        inputs=inputs,
        calibration=request.calibration,
        training=request.training,
        captured=captured,
    )
    return _with_report(model, subject, optimize_subject(subject, request), request)


def _with_report(
    model: nn.Module, subject: Subject, optimized: Optimized, request: Request
) -> OptimizedModule:
    applied = [record for record in optimized.records if record.status == "applied"]
    lowered, quality = optimized.lowered, optimized.quality
    report = Report(
        model=type(model).__name__,
        target=str(request.target),
        inputs=describe_inputs(subject),
        recipe=",".join(record.text for record in applied),
        passes=optimized.records,
        regions=(lowered.record,),
        latency_before=lowered.before.median,
        latency_after=lowered.after.median,
        latency_spread=lowered.after.spread,
        size_before=tensor_bytes([*model.parameters(), *model.buffers()]),
        size_after=optimized.program.weight_bytes(),
        drift=quality.drift,
        same_top1=quality.same_top1 if request.calibration is not None else None,
        score_before=optimized.score_before,
        score_after=optimized.score_after,
        notes=(*subject.program.notes, *missing_notes(request)),
    )
    names = tuple(argument_names(model))
    source = Source(optimized.program, lowered.assignment, names, lowered.tolerance)
    return keep_source(optimized.module.attach(report), source)


def missing_notes(request: Request) -> list[str]:
    """A line per backend that would be tried if it were installed."""
    return [f"backend {name} was not tried: {reason}" for name, reason in request.missing]


def _without_inputs(twin: nn.Module, request: Request) -> OptimizedModule:
    """What needs no shapes: the model in inference mode. The report says what was left out."""
    left_out = format_passes(request.passes) or "nothing"
    size = tensor_bytes([*twin.parameters(), *twin.buffers()])
    report = Report(
        model=type(twin).__name__,
        target=str(request.target),
        inputs="unknown",
        recipe="",
        size_before=size,
        size_after=size,
        notes=(
            "no example inputs, and the model offers none: it was not captured",
            f"left out: {left_out}, and lowering; pass example_inputs=(tensor, ...)",
        ),
    )
    return emit_python(twin).attach(report)
