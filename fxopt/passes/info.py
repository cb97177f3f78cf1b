"""What a pass declares about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from fxopt.errors import PluginError

Stage = Literal["prepare", "structure", "recover", "simplify", "numeric", "lower"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Need = Literal["calibration", "training"]

# Relative error that reordered rounding can build up over a deep network.
_ROUNDING = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 3e-2,
    torch.bfloat16: 1e-1,
}


@dataclass(frozen=True)
class Exact:
    """The pass changes outputs by rounding alone.

    Attributes:
        rtol: Relative error that is allowed, as the norm of the difference over the norm of the
            outputs before the pass; by default what rounding can build up in the outputs' dtype.
    """

    rtol: float | None = None

    def tolerance(self, dtype: torch.dtype) -> float:
        """The relative error allowed for outputs of ``dtype``; 0 for integers and booleans."""
        return _ROUNDING.get(dtype, 0.0) if self.rtol is None else self.rtol


@dataclass(frozen=True)
class Lossy:
    """The pass may change outputs; how much is measured and reported as drift."""


@dataclass(frozen=True)
class PassInfo:
    """The declaration of a pass, which the manager holds it to.

    Attributes:
        name: Its name in pipelines: lower case, digits and underscores.
        stage: When it runs: one of prepare, structure, recover, simplify, numeric, lower.
        fidelity: :class:`Exact` or :class:`Lossy`.
        requires: Facts that must hold on the program before it runs.
        provides: Facts that hold after it has run; checked.
        after: Passes of the same stage that it follows, where they are in the pipeline.
        before: Passes of the same stage that it precedes, where they are in the pipeline.
        needs: Data it cannot work without: ``calibration``, ``training``.
        preserves: Names of the analyses whose results stay valid.
        imitates: Whether it learns from ``context.teacher``, where the user gave one.
    """

    name: str
    stage: Stage
    fidelity: Exact | Lossy
    requires: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    preserves: tuple[str, ...] = field(default=())
    imitates: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise PluginError(
                f"{self.name!r} is no name for a pass",
                hint="use lower case letters, digits and underscores",
            )
        if self.stage not in STAGES:
            raise PluginError(
                f"the pass {self.name} names the stage {self.stage!r}",
                hint=f"the stages are {', '.join(STAGES)}",
            )

    @property
    def rounds(self) -> bool:
        """Whether it loses something at the stage ``numeric`` or later, as quantization does."""
        late = STAGES.index(self.stage) >= STAGES.index("numeric")
        return late and isinstance(self.fidelity, Lossy)
