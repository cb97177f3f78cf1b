"""Compares the outputs of a captured program with the model's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.complex64: 1e-4}
_COARSE = 3e-2
"""For the 16-bit formats, where another order of summation already shows."""


def mismatch(actual: Sequence[Any], expected: Sequence[Any]) -> str | None:
    """Says how two flat lists of outputs differ, None when they agree up to rounding."""
    if len(actual) != len(expected):
        return f"{len(actual)} outputs instead of {len(expected)}"
    pairs = enumerate(zip(actual, expected, strict=True))
    found = ((i, _difference(first, second)) for i, (first, second) in pairs)
    return next((f"output {i}: {text}" for i, text in found if text), None)


def _difference(actual: Any, expected: Any) -> str | None:
    if not isinstance(expected, torch.Tensor) or not isinstance(actual, torch.Tensor):
        return None if actual == expected else f"{actual!r} instead of {expected!r}"
    if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        have, want = (f"{t.dtype}{list(t.shape)}" for t in (actual, expected))
        return f"{have} instead of {want}"
    error = relative_error(actual, expected)
    return None if error <= _TOLERANCE.get(expected.dtype, _COARSE) else f"off by {error:.1e}"


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what was expected; NaN agrees with NaN."""
    if not expected.numel():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(actual, expected) else float("inf")
    if torch.equal(actual, expected):
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    first, second = (torch.nan_to_num(t.detach().to(wide)) for t in (actual, expected))
    if not torch.equal(actual.isfinite(), expected.isfinite()):
        return float("inf")
    scale = max(second.norm().item(), torch.finfo(torch.float64).tiny)
    return float((first - second).norm().item() / scale)
