"""Compares code for further input shapes with the program itself, on their first use."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence

import torch

from fxopt.backends import Executable
from fxopt.emit import OptimizedModule
from fxopt.pipeline.compare import compare
from fxopt.pipeline.precision import full_precision

# Code and program may both be as far from the original as is allowed, on either side of it.
_APART = 2.0

# What is set for full precision is one per process.
_COMPARING = threading.Lock()


def compare_on_first_use(module: OptimizedModule, tolerance: float) -> None:
    """Lets regions be compared at input shapes that they have not been compiled for so far.

    Args:
        module: Was found right at the shapes of the example.
        tolerance: Relative output error against the original that its version may show.
    """
    for region in module.lowered():
        region.compare_with(functools.partial(_difference, limit=_APART * tolerance))


def _difference(
    code: Executable, program: Executable, inputs: Sequence[torch.Tensor], limit: float
) -> str | None:
    with _COMPARING, full_precision():
        error = compare(code(*inputs), program(*inputs)).error
    return None if error <= limit else f"its error is {error:.1e}, over {limit:.1e}"
