"""The user's own measure of quality, applied to programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from fxopt.emit import emit
from fxopt.errors import InputError
from fxopt.ir import Program
from fxopt.pipeline.sandbox import evaluating, seeded

Evaluate = Callable[[nn.Module], float]


class Scorer:
    """Calls ``evaluate`` on programs, always with the same random numbers.

    Args:
        evaluate: The user's function from a module to a score, higher is better.
        max_drop: How much lower than the original's a score may be; any much where None.
        seed: Where random numbers start.
        argument_names: Names of the positional arguments of the user's ``forward``.
        original: The score of the original, where it is known already.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        *,
        max_drop: float | None = None,
        seed: int = 0,
        argument_names: Sequence[str] = (),
        original: float | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._max_drop = max_drop
        self._seed = seed
        self._names = argument_names
        self.original = original

    def prepare(self, original: Program) -> None:
        """Scores the original, once.

        Raises:
            InputError: ``evaluate`` raises or returns no number.
        """
        if self.original is None:
            self.original = self.score(original)

    def score(self, program: Program) -> float:
        """The score of a program as a module that is called as the user's model is.

        Raises:
            InputError: ``evaluate`` raises or returns no number.
        """
        with evaluating(program.module), seeded(self._seed):
            module = emit(program, self._names)  # it sets the modes of what it shares
            try:
                score = self._evaluate(module)
            except Exception as error:
                raise InputError(
                    f"evaluate raised {type(error).__name__}: {error}",
                    hint="evaluate takes a module, called as the original is, and returns a number",
                ) from error
        return as_number(score)

    def excess(self, score: float) -> str | None:
        """Why a score is too low; None when it is not."""
        if self._max_drop is None or self.original is None:
            return None
        drop = self.original - score
        if drop <= self._max_drop:
            return None
        return (
            f"evaluate drops from {self.original:.6g} to {score:.6g}, "
            f"by {drop:.3g} where max_drop={self._max_drop:g} is allowed"
        )


def as_number(score: object) -> float:
    """What ``evaluate`` returned, as a number.

    Raises:
        InputError: It is none, or NaN.
    """
    try:
        number = float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"evaluate returned {score!r}, which is no number",
            hint="evaluate takes a module and returns a number, higher is better",
        ) from error
    if math.isnan(number):
        raise InputError(
            "evaluate returned NaN, which cannot be compared",
            hint="evaluate takes a module and returns a number, higher is better",
        )
    return number
