"""The versions of a program that may be lowered, and how far each may be from the original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxopt.ir import Program
from fxopt.passes import Exact
from fxopt.pipeline.compare import compare
from fxopt.pipeline.precision import full_precision

EXACT = "exact"
REDUCED = "reduced"
UNROUNDED = "unrounded"
LOSSY = "lossy"

# Integer kernels round where the simulation of a lossy program does not, so the lowered program
# may drift from the original a little more than the simulated one, but not more than this.
LOSSY_SLACK = 1.25


@dataclass(frozen=True)
class Version:
    """A program that may be lowered.

    Attributes:
        name: ``exact``; ``reduced``, the exact program computed in a lower precision;
            ``unrounded``, what all passes but the numeric ones have made; or ``lossy``, what all
            have made.
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


def exact_version(program: Program, reference: Sequence[Sequence[Any]]) -> Version:
    """A program whose lowering may differ from the original's outputs by rounding alone."""
    return Version(EXACT, program, _rounding(reference), reference)


def reduced_version(original: Version, tolerance: float) -> Version:
    """The exact program again, which may be lowered to bfloat16 and the like.

    Args:
        original: The exact version.
        tolerance: The drift that the caller allows.
    """
    return Version(REDUCED, original.program, tolerance, original.reference)


def lossy_version(
    program: Program, original: Version, outputs: Sequence[Sequence[Any]], limit: float | None
) -> Version:
    """A program that drifts from ``original``, and whose lowering may drift little more.

    Args:
        program: What to lower.
        original: The exact version.
        outputs: Flat outputs of ``program``, one tuple per example.
        limit: The drift that the caller allows.
    """
    tolerance = _with_slack(outputs, original, limit)
    return Version(LOSSY, program, tolerance, original.reference)


def unrounded_version(
    program: Program,
    lossy: Version,
    original: Version,
    examples: Sequence[Sequence[Any]],
    limit: float | None,
) -> Version:
    """What ``lossy`` would be without its numeric passes; it may drift as far from ``original``.

    Where it drifts further, since rounding was trained away, it may do that.
    """
    outputs = [_run_flat(program, flat) for flat in examples]
    tolerance = max(lossy.tolerance, _with_slack(outputs, original, limit))
    return Version(UNROUNDED, program, tolerance, original.reference)


def _with_slack(outputs: Sequence[Sequence[Any]], original: Version, limit: float | None) -> float:
    """What lowering a program that yields ``outputs`` may drift from ``original``."""
    drifts = [
        compare(mine, reference).error
        for mine, reference in zip(outputs, original.reference, strict=True)
    ]
    tolerance = LOSSY_SLACK * max(drifts) + original.tolerance
    return tolerance if limit is None else min(tolerance, limit)


def _run_flat(program: Program, flat: Sequence[Any]) -> tuple[Any, ...]:
    """The flat outputs of a program, computed in full precision and without gradients."""
    with torch.no_grad(), full_precision():
        return program(*flat)


def _rounding(outputs: Sequence[Sequence[Any]]) -> float:
    tensors = [o for flat in outputs for o in flat if isinstance(o, torch.Tensor)]
    return max((Exact().tolerance(t.dtype) for t in tensors), default=0.0)
