"""The pass ``finetune``: trains the program on the user's data and loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxopt.plugin import Context, Lossy, Pass, PassError, PassInfo, PassResult, Program, zero_keeper


@dataclass(frozen=True)
class Finetune(Pass):
    """Trains all weights as ``fxopt.optimize(training=)`` says.

    Attributes:
        keep_zeros: Whether weights of linear layers and convolutions that are zero stay zero, as
            after pruning single weights. A layer whose weights are all zero learns in any case.
    """

    keep_zeros: bool = True

    info: ClassVar[PassInfo] = PassInfo(
        name="finetune", stage="recover", fidelity=Lossy(), needs=("training",), before=("distill",)
    )

    def run(self, program: Program, context: Context) -> PassResult:
        """Trains.

        Raises:
            PassError: The data have no labels.
        """
        assert context.training is not None
        if not context.training.labelled:
            raise PassError(
                "finetune needs labels and a loss: give fxopt.Training(data, loss=)",
                hint="distill learns from the original model, without labels",
            )
        keep = zero_keeper(program) if self.keep_zeros else None
        with program.edit() as edit, edit.together("weights trained") as permitted:
            if not permitted:
                return edit.result()
            trained = context.training.train(
                program, name="finetune", after_step=keep, key=repr(self)
            )
        return edit.result(f"trained for {trained}", losses=list(trained.losses))
