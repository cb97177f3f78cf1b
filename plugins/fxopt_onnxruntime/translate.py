"""From an exported program to an ONNX model that ONNX Runtime's integer kernels can take."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from fxopt.plugin import BackendError, recurrent_layers_not_walked

if TYPE_CHECKING:
    import onnx_ir as ir

aten = torch.ops.aten

# ONNX has no form for these, so that torch writes out all their steps
_STEPPED = (aten.rnn_tanh.input, aten.rnn_relu.input)
_CHATTY = ("torch.onnx", "onnxscript", "onnx_ir")


def translate(exported: torch.export.ExportedProgram, recurrent: Collection[str] = ()) -> ir.Model:
    """A model with QuantizeLinear and DequantizeLinear where the program rounds.

    Args:
        exported: Plain ATen.
        recurrent: Qualified names in it of recurrent layers that are to compute in int8.

    Raises:
        BackendError: Some operator has no translation.
    """
    _refuse_projections(exported)
    from fxopt_onnxruntime.attention import attention_table
    from fxopt_onnxruntime.rules import prepare, rewrite

    with _quiet():
        try:
            with _steps_left_out(exported):
                program = torch.onnx.export(
                    exported,
                    dynamo=True,
                    optimize=False,
                    verbose=False,
                    custom_translation_table=attention_table(),
                )
            assert program is not None
            prepare(program.model, recurrent)
            program.optimize()
        except Exception as error:
            raise BackendError(f"the program has no form in ONNX: {_cause(error)}") from error
        rewrite(program.model)
    return program.model


def _refuse_projections(exported: torch.export.ExportedProgram) -> None:
    """Raises for an LSTM with a projection, of which torch's translation makes another layer."""
    for node in exported.graph.find_nodes(op="call_function", target=torch.ops.aten.lstm.input):
        weights, biased, levels, *_, both = node.args[2:8]
        if len(weights) != (4 if biased else 2) * levels * (2 if both else 1):
            raise BackendError("ONNX has no LSTM with a projection", hint="leave out proj_size")


def _steps_left_out(
    exported: torch.export.ExportedProgram,
) -> AbstractContextManager[None]:
    """Torch's translation learns sizes by walking recurrent layers; where it only learns them, not.

    Where it writes out the steps, it has to walk.
    """
    is_written_out = any(exported.graph.find_nodes(op="call_function", target=t) for t in _STEPPED)
    return nullcontext() if is_written_out else recurrent_layers_not_walked()


def _cause(error: BaseException) -> str:
    """The innermost reason, in one line: the outer ones are advice to users of torch.onnx."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:500]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps warnings about the exporter's own workings from the user; errors are raised anyway."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
