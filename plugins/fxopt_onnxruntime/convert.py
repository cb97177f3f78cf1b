"""From a program to a session of ONNX Runtime, one for all batch sizes where that is possible."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxopt.plugin import (
    BackendError,
    LeafModule,
    Lowering,
    Program,
    Target,
    Tensors,
    export_program,
    keep_files,
)
from fxopt_onnxruntime.execute import ONNXRuntimeExecutable
from fxopt_onnxruntime.session import MODEL, Session, save
from fxopt_onnxruntime.translate import translate

if TYPE_CHECKING:
    import onnx_ir as ir

_FEW = 2  # rows that a profile is written with


class ONNXRuntimeLowering(Lowering):
    """A program as a session of ONNX Runtime.

    With a symbolic batch one session serves all sizes: the runtime's kernels take their sizes at
    run time, so nothing would be gained by a session, and a copy of the weights, for each. Where
    the exported program has its batch fixed, each set of input shapes gets a session of its own.

    Args:
        program: What to convert.
        inputs: Inputs to export it with.
        target: The CPU, and how many threads a call may use.
        spinning: Whether idle threads go on waiting in a loop between calls.

    Raises:
        BackendError: Neither way of converting works.
    """

    def __init__(self, program: Program, inputs: Tensors, target: Target, spinning: bool) -> None:
        self._program = program
        self._target = target
        self._spinning = spinning
        self._key = program.fingerprint()
        self._any_batch = self._session_for_any_batch(inputs)
        self._fixed = None if self._any_batch else (_shapes(inputs), self._session(inputs))

    def compile(self, inputs: Tensors) -> ONNXRuntimeExecutable:
        """Code for inputs of these shapes.

        Raises:
            BackendError: ONNX Runtime cannot convert or run it for them.
        """
        if self._any_batch is not None:
            try:
                return ONNXRuntimeExecutable(self._any_batch, inputs)
            except BackendError:
                self._any_batch = None
        return ONNXRuntimeExecutable(self._session_for(inputs), inputs)

    def _session_for(self, inputs: Tensors) -> Session:
        if self._fixed is None or self._fixed[0] != _shapes(inputs):
            self._fixed = (_shapes(inputs), self._session(inputs))
        return self._fixed[1]

    def _session_for_any_batch(self, inputs: Tensors) -> Session | None:
        if not self._program.signature.batch:
            return None
        try:
            kept = keep_files(
                f"onnxruntime-{self._key}",
                lambda folder: save(self._translate_any_batch(inputs), folder),
            )
            model = kept / MODEL if kept else self._translate_any_batch(inputs)
            return self._start(model, self._few_rows(inputs))
        except BackendError:
            return None

    def _few_rows(self, inputs: Tensors) -> Tensors:
        """The inputs at a smaller batch, which a session of any batch runs in less time."""
        symbols = [_symbolic_rows(node) for node in self._program.inputs]
        if len(set(symbols) - {""}) != 1:  # none, or some depend on each other
            return inputs
        pairs = zip(inputs, symbols, strict=True)
        return [tensor[:_FEW] if symbol else tensor for tensor, symbol in pairs]

    def _translate_any_batch(self, inputs: Tensors) -> ir.Model:
        return self._translate(export_program(self._program, inputs, dynamic=True))

    def _session(self, inputs: Tensors) -> Session:
        return self._start(self._translate(export_program(self._program, inputs)), inputs)

    def _translate(self, exported: torch.export.ExportedProgram) -> ir.Model:
        return translate(exported, _integer_recurrent(self._program))

    def _start(self, model: ir.Model | Path, inputs: Tensors) -> Session:
        return Session(model, inputs, self._target, self._spinning, self._key)


def _integer_recurrent(program: Program) -> set[str]:
    """Names, as in the exported program, of recurrent layers that are to compute in int8."""
    called = {str(node.target): node for node in program.nodes if node.op == "call_module"}
    leaves = {name: program.leaf(node) for name, node in called.items()}
    return {
        f"module.{name}"
        for name, leaf in leaves.items()
        if isinstance(leaf, LeafModule) and leaf.family == "recurrent" and leaf.precision == "int8"
    }


def _symbolic_rows(node: fx.Node) -> str:
    """How many rows an input has, if that is symbolic; else empty."""
    value: torch.Tensor = node.meta["val"]
    is_symbolic = value.dim() > 0 and isinstance(value.shape[0], torch.SymInt)
    return str(value.shape[0]) if is_symbolic else ""


def _shapes(inputs: Tensors) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in inputs)
