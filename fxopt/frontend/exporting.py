"""Runs `torch.export` on a copy of a model."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from fxopt.errors import CaptureError
from fxopt.frontend.source import blame
from fxopt.frontend.structure import fast_path_off, random_state_restored
from fxopt.ir import recurrent_layers_not_walked


def export_model(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    batched: Iterable[torch.Tensor],
) -> ExportedProgram:
    """Exports a model in eval mode, with gradients on so that the graph stays trainable.

    Args:
        model: A structural copy in eval mode.
        args: Example positional inputs.
        kwargs: Example keyword inputs.
        batched: Those of the input tensors whose first dimension is the batch.

    Returns:
        The exported program, not decomposed.

    Raises:
        CaptureError: The model cannot be exported; the error names the user's line.
    """
    shapes = ShapesCollection()
    for tensor in batched:
        shapes[tensor] = {0: Dim.AUTO}
    try:
        with _tracing():
            dynamic = shapes.dynamic_shapes(model, args, kwargs)
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except Exception as error:
        raise _explain(error, model) from error


@contextmanager
def _tracing() -> Iterator[None]:
    with (
        fast_path_off(),
        random_state_restored(),
        recurrent_layers_not_walked(),
        torch.enable_grad(),
        _quiet(),
    ):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch from printing the whole graph when an export fails: the error says enough."""
    logger = logging.getLogger("torch")
    level = logger.level
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


# Up to these sizes torch takes another kernel for a batch norm on a GPU (`use_cudnn` in
# aten/src/ATen/native/Normalization.cpp), with the same result.
_BATCH_NORM_LIMITS = {65535, 131070, 880801}


def largest_size(exported: ExportedProgram) -> int | None:
    """The size that the model's code limits a symbolic dimension to, None for no limit."""
    ranges = exported.range_constraints.items()
    # u0, u1 ... are sizes that depend on the data, not those of inputs
    uppers = [bounds.upper for symbol, bounds in ranges if not str(symbol).startswith("u")]
    finite = {int(upper) for upper in uppers if upper.is_Integer}
    if any(node.target is torch.ops.aten.batch_norm.default for node in exported.graph.nodes):
        finite -= _BATCH_NORM_LIMITS
    return min(finite, default=None)


def depends_on_data(error: CaptureError) -> bool:
    """Whether an export failed because of the data, so that fixing sizes cannot help."""
    return isinstance(error.__cause__, GuardOnDataDependentSymNode)


def _explain(error: Exception, model: nn.Module) -> CaptureError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = lines[0].strip() if lines else "no reason given"
    operation = _last_operation(error)
    at = f" at {operation}" if operation else ""
    return CaptureError(
        f"{type(model).__name__} cannot be captured{at}: {type(error).__name__}: {reason}",
        where=blame(error),
        hint="take Python that depends on the data out of forward, or let its parts be captured",
    )


def _last_operation(error: Exception) -> str | None:
    """The operation that was traced last, which torch attaches to the error as text."""
    calls = re.findall(r"torch\.ops\.([\w.]+)\(", str(getattr(error, "partial_fx_graph", "")))
    return calls[-1] if calls else None
