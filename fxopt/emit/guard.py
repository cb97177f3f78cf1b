"""The check at the entrance of an emitted module: inputs are what it was made for."""

from __future__ import annotations

from typing import Any

from fxopt.errors import InputError
from fxopt.ir import LeafModule, Program, expected_inputs


class InputGuard(LeafModule):
    """Raises a clear error where the graph would fail obscurely, or worse, compute nonsense.

    Args:
        program: Its placeholders say what is expected.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._expected = expected_inputs(program.inputs)

    def forward(self, *inputs: Any) -> None:
        for expected, value in zip(self._expected, inputs, strict=True):
            problem = expected.mismatch(value)
            if problem is not None:
                raise InputError(
                    f"the input {expected.name!r} does not fit this optimized model: {problem}",
                    hint="optimize again with example inputs of this kind",
                )
