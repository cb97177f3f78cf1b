"""The contract of a pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from fxopt.analysis import Analyses, Analysis
from fxopt.cost import Target
from fxopt.ir import PassResult, Program
from fxopt.passes.calibration import Calibration
from fxopt.passes.info import PassInfo
from fxopt.training import Trainer

T = TypeVar("T")


@dataclass
class Context:
    """What a pass may know besides the program.

    Attributes:
        target: The machine that the model is optimized for.
        examples: Flat example inputs, at one batch size or at two.
        calibration: Batches to calibrate on; there if the pass declares that it needs them.
        training: Trains programs as the user asked; there if the pass declares that it needs it.
        original: The program before any pass; it must be left as it is.
        teacher: The user's own, which is learned from instead of the original; it must be left as
            it is. None where there is none.
        seed: For whatever is random.
        progress: Takes a line to show while a long job runs.
    """

    target: Target
    examples: Sequence[Sequence[Any]] = ()
    calibration: Calibration | None = None
    training: Trainer | None = None
    original: Program | None = None
    teacher: Program | None = None
    seed: int = 0
    progress: Callable[[str], None] = lambda line: None
    analyses: Analyses = field(default_factory=Analyses)

    def analysis(self, analysis: Analysis[T], program: Program) -> T:
        """The result of ``analysis`` on ``program``, from the cache where it is still valid."""
        return self.analyses.get(analysis, program)


class Pass(ABC):
    """Base of all passes: a frozen dataclass whose fields are its settings.

    A pass changes the program that it is given; it has it for itself, weights included, and the
    manager drops it when the pass fails or breaks its word.
    """

    info: ClassVar[PassInfo]

    def inapplicable(self, program: Program, context: Context) -> str | None:
        """Why there is nothing to do on ``program``, for the report; None when there is."""
        return None

    @abstractmethod
    def run(self, program: Program, context: Context) -> PassResult:
        """Changes ``program`` through ``program.edit()`` and returns ``edit.result()``."""

    def milder(self, program: Program, context: Context) -> Milder:
        """The same pass with less and less effect, for when its result is over a limit of quality.

        The manager looks for the first one that keeps the limits by bisection. ``program`` is a
        copy, as for :meth:`run`.
        """
        return Milder()

    def space(self, program: Program, target: Target) -> dict[str, Sequence[Any]]:
        """The settings worth searching: values by field name. Empty when there is no choice."""
        return {}


@dataclass(frozen=True)
class Milder:
    """What a pass can do instead of what costs too much quality.

    Attributes:
        passes: Of the same class, the strongest first; each should cost no more quality than those
            before it. Empty when there is nothing in between.
        costs: Why they are in this order, for the report: for each layer, those first that are
            spared first, its share in the error, and in the time or memory that the pass gains.
    """

    passes: Sequence[Pass] = ()
    costs: Mapping[str, tuple[float, float]] = field(default_factory=dict)
