"""From a program to a model of OpenVINO, once for all batch sizes where that is possible."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fxopt.plugin import (
    BackendError,
    Lowering,
    Program,
    Tensors,
    export_program,
    keep_files,
)
from fxopt_openvino.execute import DividedExecutable, OpenVINOExecutable
from fxopt_openvino.heads import with_keys_for_all_heads
from fxopt_openvino.indices import with_indices_from_the_start
from fxopt_openvino.masks import zero_unattended
from fxopt_openvino.narrow import narrow
from fxopt_openvino.recurrent import extensions, fix_lengths, with_sequences
from fxopt_openvino.repeated import with_distinct_outputs
from fxopt_openvino.rows import leave_rounding
from fxopt_openvino.settings import Settings

if TYPE_CHECKING:
    import openvino

_FILE = "model.xml"


class OpenVINOLowering(Lowering):
    """A program as a model of OpenVINO.

    With a symbolic batch it is converted once, for all variants, and only reshaped for each set
    of input shapes: the runtime's code for fixed sizes is the faster one. Where the exported
    program has its batch fixed, or the reshaping fails, it is converted anew for each set of
    shapes.

    Args:
        program: What to convert.
        inputs: Inputs to export it with.
        settings: How it is to run; a batch is divided into as many parts as there are streams,
            where it can be.

    Raises:
        BackendError: Neither way of converting works.
    """

    def __init__(self, program: Program, inputs: Tensors, settings: Settings) -> None:
        program = with_keys_for_all_heads(with_indices_from_the_start(program))
        self._program = with_distinct_outputs(program)
        self._settings = settings
        self._memory: list[torch.Tensor] = []  # of constants, beside what the models hold
        self._any_batch = self._convert_for_any_batch(inputs)
        self._fixed = None if self._any_batch else (_shapes(inputs), self._convert(inputs))

    def compile(self, inputs: Tensors) -> OpenVINOExecutable:
        """Code for inputs of these shapes.

        Raises:
            BackendError: OpenVINO cannot convert or compile for them.
        """
        streams = self._settings.streams
        if streams == 1 or len(inputs[0]) % streams:
            return self._compile(inputs, replace(self._settings, streams=1))
        return self._compile([tensor.chunk(streams)[0] for tensor in inputs], self._settings)

    def _compile(self, inputs: Tensors, settings: Settings) -> OpenVINOExecutable:
        if self._any_batch is not None:
            try:
                return self._executable(_reshaped(self._any_batch, inputs), settings)
            except Exception:  # noqa: BLE001 - whatever the runtime raises, the other way is left
                self._any_batch = None
        return self._executable(self._model_for(inputs), settings)

    def _executable(self, model: openvino.Model, settings: Settings) -> OpenVINOExecutable:
        kind = DividedExecutable if settings.streams > 1 else OpenVINOExecutable
        return kind(model, settings, self._memory)

    def _model_for(self, inputs: Tensors) -> openvino.Model:
        """A model of these sizes; the one that was made at first is not kept any longer."""
        first, self._fixed = self._fixed, None
        if first is not None and first[0] == _shapes(inputs):
            return first[1]
        return self._convert(inputs)

    def _convert_for_any_batch(self, inputs: Tensors) -> openvino.Model | None:
        if not self._program.signature.batch:
            return None
        try:
            kept = keep_files(
                f"openvino-{self._program.fingerprint()}",
                lambda folder: _save(self._translate_any_batch(inputs), folder),
            )
            return self._translate_any_batch(inputs) if kept is None else _read(kept)
        except BackendError:
            return None

    def _translate_any_batch(self, inputs: Tensors) -> openvino.Model:
        return self._translate(export_program(with_sequences(self._program), inputs, dynamic=True))

    def _convert(self, inputs: Tensors) -> openvino.Model:
        exported = export_program(with_sequences(self._program), inputs)
        return _reshaped(self._translate(exported), inputs)

    def _translate(self, exported: torch.export.ExportedProgram) -> openvino.Model:
        import openvino

        try:
            model = openvino.convert_model(exported, extension=extensions())
            self._memory += narrow(model)
            leave_rounding(model)
            zero_unattended(model)
            return model
        except Exception as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise BackendError(
                f"OpenVINO cannot convert the program: {' '.join(first)[:500]}"
            ) from error


def _save(model: openvino.Model, folder: Path) -> None:
    import openvino

    openvino.save_model(model, folder / _FILE, compress_to_fp16=False)


def _read(folder: Path) -> openvino.Model:
    import openvino

    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # weights in pages of a file are 3 % slower
    return core.read_model(folder / _FILE)


def _reshaped(model: openvino.Model, inputs: Tensors) -> openvino.Model:
    fixed = model.clone()
    fixed.reshape({index: list(tensor.shape) for index, tensor in enumerate(inputs)})
    fix_lengths(fixed)
    return fixed


def _shapes(inputs: Tensors) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in inputs)
