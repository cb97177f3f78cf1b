"""A case: a captured model with inputs at two batch sizes, to run a pass on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fxopt.cost import find_target
from fxopt.errors import InputError
from fxopt.frontend import batch_size, capture_program, with_batch
from fxopt.ir import PassResult, Program
from fxopt.passes import Calibration, Context, Pass
from fxopt.pipeline import compare

Flat = Sequence[Any]


@dataclass(frozen=True)
class Case:
    """A program to run passes on.

    Attributes:
        name: What tests call it.
        program: The captured model, with weights of its own. Run passes on a clone of it.
        inputs: Flat inputs at two batch sizes, or at one where the batch is fixed.
    """

    name: str
    program: Program
    inputs: tuple[Flat, ...]

    def context(self) -> Context:
        """What a pass is told: this machine, both inputs, and them as calibration data."""
        calibration = _FlatBatches(self.inputs, self.program.signature)
        return Context(find_target("cpu"), examples=self.inputs, calibration=calibration)

    def outputs(self, program: Program | None = None) -> list[tuple[Any, ...]]:
        """The flat outputs for each of the inputs, of the case's own program or of another one."""
        with torch.no_grad():
            return [(program or self.program)(*flat) for flat in self.inputs]


class _FlatBatches(Calibration):
    """Batches that are flat already: a user's can be positional or by keyword, but not both."""

    def _flatten(self, batch: Any) -> list[Any]:
        return list(batch)


def make_case(name: str, model: nn.Module, *args: Any, **kwargs: Any) -> Case:
    """Captures a model for tests.

    Args:
        name: What tests call it.
        model: The model, which is not changed.
        *args: Example inputs with a batch of at least two.
        **kwargs: Example keyword inputs.

    Raises:
        CaptureError: The model cannot be captured.
        InputError: No input has a batch.
    """
    size = batch_size((args, kwargs))
    if size is None:
        raise InputError("none of the example inputs has a batch dimension")
    program = capture_program(model, args, kwargs).clone()
    other = with_batch((args, kwargs), size + 1)
    calls = [(args, kwargs), other] if program.signature.batch else [(args, kwargs)]
    return Case(name, program, tuple(program.signature.flatten(*call) for call in calls))


def run_pass(item: Pass, case: Case) -> tuple[Program, PassResult]:
    """Runs a pass on a clone of the case's program."""
    program = case.program.clone()
    return program, item.run(program, case.context())


def worst_error(case: Case, program: Program) -> float:
    """Relative error of the outputs of ``program`` against the case's own, over all its inputs."""
    pairs = zip(case.outputs(program), case.outputs(), strict=True)
    return max(compare(mine, theirs).error for mine, theirs in pairs)
