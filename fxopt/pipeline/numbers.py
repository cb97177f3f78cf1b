"""Outputs of programs on the examples and the calibration data, compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from fxopt.errors import CalibrationError, FxoptError, InputError
from fxopt.ir import Program
from fxopt.passes import Context
from fxopt.pipeline.compare import Comparison, beyond, compare
from fxopt.pipeline.sandbox import copy_inputs, run_program

Outputs = list[tuple[Any, ...]]

# Drift is measured on the first calibration batches, until there are so many batches or rows.
_MAX_BATCHES = 4
_MAX_ROWS = 128


class Numbers:
    """What the original program computes, and how far others are from it.

    Inputs and outputs are copied, so that no pass can get at them.

    Args:
        original: The program before all passes.
        context: Its examples and calibration data; a program of a fixed batch has one example.
        known: Flat outputs of the original on the first of several examples, where somebody has
            computed them as is done here.

    Raises:
        InputError: The program does not run on the examples.
    """

    def __init__(
        self, original: Program, context: Context, known: Sequence[Any] | None = None
    ) -> None:
        self._original = original
        self._context = context
        usable = context.examples if original.signature.batch else context.examples[:1]
        self._examples = [copy_inputs(flat) for flat in usable]
        self._batches: list[list[Any]] | None = None
        self._calibrated: Outputs = []
        try:
            self._reference = self._started(known)
        except Exception as error:
            raise InputError(
                f"the program fails on the example inputs: {type(error).__name__}: {error}",
                hint="give example inputs as they were at capture",
            ) from error

    @property
    def reference(self) -> Outputs:
        """Outputs of the original on the examples."""
        return self._reference

    def _started(self, known: Sequence[Any] | None) -> Outputs:
        """Outputs of the original; at least one run says whether it writes to its inputs."""
        if known is None or len(self._examples) < 2:
            return self.run(self._original)
        return [tuple(known), *(self._run(self._original, flat) for flat in self._examples[1:])]

    def run(self, program: Program) -> Outputs:
        """The flat outputs of a program on each example."""
        return [self._run(program, flat) for flat in self._examples]

    def compare(self, outputs: Outputs, reference: Outputs) -> Comparison | None:
        """The worst difference over the examples; None where there are none."""
        return _worst(_comparisons(outputs, reference, self._labels()))

    def beyond(
        self, outputs: Outputs, reference: Outputs, tolerance: Callable[[torch.dtype], float]
    ) -> str | None:
        """Where outputs are further from their reference than their dtype allows, in words."""
        for label, mine, theirs in zip(self._labels(), outputs, reference, strict=True):
            found = beyond(mine, theirs, tolerance)
            if found is not None:
                return _describe(*found, label)
        return None

    def prepare_calibration(self) -> None:
        """Fetches the first batches and runs the original on them, once.

        Raises:
            CalibrationError: There is no batch, or one that the model does not take.
        """
        if self._batches is not None or self._context.calibration is None:
            return
        try:
            batches = list(_first_batches(self._context.calibration))
            self._calibrated = [self._run(self._original, flat) for flat in batches]
        except FxoptError:
            raise
        except Exception as error:
            raise CalibrationError(
                f"the model fails on a calibration batch: {type(error).__name__}: {error}",
                hint="its batches must be like the example inputs in dtype, device and sizes",
            ) from error
        self._batches = batches

    def calibration_drift(self, program: Program) -> Comparison | None:
        """The worst difference from the original on the calibration data; None without any."""
        if self._batches is None:
            return None
        outputs = [self._run(program, flat) for flat in self._batches]
        labels = [f"calibration batch {index}" for index in range(len(outputs))]
        return _worst(_comparisons(outputs, self._calibrated, labels))

    def _run(self, program: Program, flat: Sequence[Any]) -> tuple[Any, ...]:
        return run_program(program, flat, self._context.seed)

    def _labels(self) -> list[str]:
        return [_label(flat) for flat in self._examples]


def worst(*comparisons: Comparison | None) -> Comparison | None:
    """The one with the largest error; None where there is none at all."""
    return _worst(each for each in comparisons if each is not None)


def _worst(comparisons: Iterable[Comparison]) -> Comparison | None:
    return max(comparisons, key=lambda each: each.error, default=None)


def _comparisons(
    outputs: Outputs, reference: Outputs, labels: Sequence[str]
) -> Iterator[Comparison]:
    for mine, theirs, label in zip(outputs, reference, labels, strict=True):
        found = compare(mine, theirs)
        yield Comparison(found.error, f"{found.where} at {label}")


def _describe(found: Comparison, allowed: float, label: str) -> str:
    if math.isinf(found.error):
        return f"{found.where}, at {label}"
    return f"{found.where} differs by {found.error:.1e} at {label}, where {allowed:.0e} is allowed"


def _first_batches(batches: Iterable[Sequence[Any]]) -> Iterator[list[Any]]:
    rows = 0
    for flat in islice(batches, _MAX_BATCHES):
        yield copy_inputs(flat)
        rows += _rows(flat) or 1
        if rows >= _MAX_ROWS:
            return


def _rows(flat: Sequence[Any]) -> int | None:
    sizes = [t.shape[0] for t in flat if isinstance(t, torch.Tensor) and t.dim()]
    return sizes[0] if sizes else None


def _label(flat: Sequence[Any]) -> str:
    rows = _rows(flat)
    return "the example" if rows is None else f"batch size {rows}"
