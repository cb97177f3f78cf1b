"""The pass ``distill``: the program learns what the original model says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxopt.plugin import (
    Context,
    Lossy,
    Pass,
    PassError,
    PassInfo,
    PassResult,
    Program,
    zero_keeper,
)
from fxopt_recover.hints import Hints, Kind
from fxopt_recover.objective import Imitation
from fxopt_recover.scores import Match, choose


@dataclass(frozen=True)
class Distill(Pass):
    """Trains towards the outputs of the original model, as it was before any pass.

    With ``fxopt.Training(teacher=)``, towards those of another model instead: then what is
    optimized may be a smaller network from the start.

    With labels, the user's loss counts as well; without, the original alone says what is right.

    Attributes:
        match: How outputs are compared: class scores by the divergence of their softmax at a
            ``temperature`` (``logits``, Hinton et al., "Distilling the Knowledge in a Neural
            Network", 2015), any outputs by their mean squared error relative to the original's
            (``outputs``), or ``auto``: scores where there is one output of shape (batch, classes)
            and the user's loss is none of numbers, such as ``mse``. Classes are along dimension 1
            of images and the last one of tokens.
        temperature: Softens both softmaxes; the gradient is scaled by its square.
        weight: What the original says counts for, against the labels; 1 without labels.
        hints: What else is imitated within: nothing (``off``); where the network attends to, the
            normalised mean square over channels (``attention``, Zagoruyko and Komodakis, 2017);
            or the values themselves, where channels differ through a linear map that is trained
            with the student (``features``, as FitNets, Romero et al. 2015).
        layers: Names of the layers whose outputs those hints take; ``*`` matches any text. By
            default the last layer within of each size of image or number of tokens, and of vectors.
        hint_weight: What the hints count for, relative to the outputs.
        keep_zeros: Whether weights of linear layers and convolutions that are zero stay zero, as
            after pruning single weights. A layer whose weights are all zero learns in any case.
    """

    match: Match = "auto"
    temperature: float = 4.0
    weight: float = 0.9
    hints: Kind = "off"
    layers: tuple[str, ...] = ()
    hint_weight: float = 1.0
    keep_zeros: bool = True

    info: ClassVar[PassInfo] = PassInfo(
        name="distill", stage="recover", fidelity=Lossy(), needs=("training",), imitates=True
    )

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight={self.weight} must be between 0 and 1")
        if self.hint_weight < 0:
            raise ValueError(f"hint_weight={self.hint_weight} must not be negative")

    def run(self, program: Program, context: Context) -> PassResult:
        """Trains.

        Raises:
            PassError: There is no original to learn from, there are no layers for ``hints``, or
                outputs have no ``logits``.
        """
        assert context.training is not None
        source = context.teacher or context.original
        if source is None:
            raise PassError("distill needs the original program, and the context has none")
        teacher = source.clone()  # it moves to where training happens
        hints = Hints.between(program, teacher, self.hints, self.layers, context.examples)
        imitation = Imitation(
            teacher,
            context.training.criterion_of(program),
            match=choose(self.match, program, context.training.settings.criterion),
            temperature=self.temperature,
            weight=self.weight,
            hints=hints,
            hint_weight=self.hint_weight,
        )
        keep = zero_keeper(program) if self.keep_zeros else None
        key = f"{self!r} {source.fingerprint()}"
        with program.edit() as edit, edit.together("weights trained") as permitted, hints:
            if not permitted:
                return edit.result()
            trained = context.training.train(
                program, name="distill", objective=imitation, after_step=keep, key=key
            )
        told = f", {len(hints)} hints" if len(hints) else ""
        return edit.result(f"trained for {trained}{told}", losses=list(trained.losses))
