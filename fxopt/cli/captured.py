"""The model of the command line, captured, for the commands that work on the program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxopt.errors import InputError

if TYPE_CHECKING:
    from fxopt.api.whole import Subject
    from fxopt.passes import Pass
    from fxopt.pipeline import Plan


@dataclass(frozen=True)
class Source:
    """What the user says of the model.

    Attributes:
        model: Where it is.
        inputs: The texts of ``--input``.
        weights: A file with a state dict, or ``DEFAULT``.
        seed: For random inputs and weights.
    """

    model: str
    inputs: Sequence[str] = ()
    weights: str | None = None
    seed: int = 0


def captured(source: Source) -> Subject:
    """Loads and captures the model.

    Raises:
        InputError: There is no such model, or there are no inputs for it.
        CaptureError: It cannot be captured whole.
    """
    from fxopt.api.whole import Subject
    from fxopt.cli.inputs import parse_inputs
    from fxopt.cli.model import load_model
    from fxopt.frontend import capture_program, normalize_inputs

    model = load_model(source.model, source.weights, source.seed)
    inputs = normalize_inputs(model, parse_inputs(source.inputs, source.seed))
    if inputs is None:
        raise InputError(
            "example inputs are needed, and the model offers none",
            hint="give their sizes, such as --input 1x3x224x224",
        )
    return Subject("whole net", model, capture_program(model, *inputs), inputs)


def planned(passes: Sequence[Pass], holding: set[str]) -> Plan:
    """The plan of ``passes`` with the facts and passes that are installed."""
    from fxopt.pipeline import plan
    from fxopt.registry import default_registry

    registry = default_registry()
    providers = {fact: registry.providers(fact) for fact in registry.facts}
    return plan(passes, registry.facts, holding, providers)


def holding(subject: Subject) -> set[str]:
    """The facts that are true of the captured program."""
    from fxopt.registry import default_registry

    facts = default_registry().facts
    return {name for name, fact in facts.items() if fact.holds(subject.program)}
