"""What is asked of the worker, and what comes of it, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch

from fxopt.backends import Backend, Kernel
from fxopt.cost import Latency, Target
from fxopt.ir.saving.values import UnsavableError, decode, encode
from fxopt.pipeline.assignment import Assignment, Share
from fxopt.pipeline.compare import Comparison
from fxopt.registry import Registry

ELSEWHERE = "at another batch size"
"""Where those examples are run that are not timed."""

Outcome = Literal["ran", "refused", "died", "not isolated"]


@dataclass(frozen=True)
class TrialResult:
    """What became of a backend that was tried in another process.

    Attributes:
        outcome: ``ran``: it gave outputs, right or wrong. ``refused``: it said or raised why not.
            ``died``: its process crashed, or gave no answer in time. ``not isolated``: it could
            not be handed over to another process, so that nothing is known of it.
        reason: Why it gave no outputs; empty where it did.
        errors: For each example that was run, how far its outputs are from the reference.
        others: The same of those that were run because it was fast; empty where it was not.
        precisions: How many heavy operations run in which precision.
        kernels: The operations of the lowered code.
        fallbacks: Layers that were to run in a lower precision than they do.
        build_seconds: Time for lowering, and for compiling for the first one of them.
        latency: Of warm calls on the first example; None where the errors were beyond tolerance.
        kept: Whether the worker has kept it.
        log: The last lines that its process printed, where it died.
    """

    outcome: Outcome
    reason: str = ""
    errors: tuple[Comparison, ...] = ()
    others: tuple[Comparison, ...] = ()
    precisions: Mapping[str, int] = field(default_factory=dict)
    kernels: tuple[Kernel, ...] = ()
    fallbacks: tuple[str, ...] = ()
    build_seconds: float = 0.0
    latency: Latency | None = None
    kept: bool = False
    log: str = ""


@dataclass(frozen=True)
class TurnResult:
    """What came of a turn in a race.

    Attributes:
        milliseconds: Each of its calls.
        reason: Why there are none.
        lost: Whether that is no fault of what was to run: the worker has it no longer.
    """

    milliseconds: tuple[float, ...] = ()
    reason: str = ""
    lost: bool = False


def turn_from_json(data: Mapping[str, Any]) -> TurnResult:
    """The result of a turn, from its JSON form."""
    return TurnResult(tuple(data["milliseconds"]), data["reason"], data["lost"])


def result_from_json(data: Mapping[str, Any]) -> TrialResult:
    """The result of a trial, from its JSON form."""
    latency = data["latency"]
    return TrialResult(
        **{
            **data,
            "errors": tuple(Comparison(**each) for each in data["errors"]),
            "others": tuple(Comparison(**each) for each in data["others"]),
            "fallbacks": tuple(data["fallbacks"]),
            "kernels": tuple(Kernel(**each) for each in data["kernels"]),
            "latency": None if latency is None else Latency(tuple(latency["milliseconds"])),
        }
    )


def assignment_to_json(assignment: Assignment, registry: Registry) -> list[dict[str, Any]]:
    """Which backend takes which nodes, each backend by its name.

    Raises:
        UnsavableError: A backend comes from no plugin, or has a setting that is no plain value.
    """
    return [
        {
            "backend": share.backend.info.name,
            "settings": _settings(share.backend, registry),
            "nodes": None if share.nodes is None else sorted(share.nodes),
        }
        for share in assignment.shares
    ]


def assignment_from_json(data: Sequence[Mapping[str, Any]], registry: Registry) -> Assignment:
    """The assignment that :func:`assignment_to_json` wrote."""
    return Assignment(
        tuple(
            Share(
                registry.backends[share["backend"]](
                    **{name: decode(value) for name, value in share["settings"].items()}
                ),
                None if share["nodes"] is None else frozenset(share["nodes"]),
            )
            for share in data
        )
    )


def _settings(backend: Backend, registry: Registry) -> dict[str, Any]:
    name, cls = backend.info.name, type(backend)
    if registry.backends.get(name) is not cls:
        raise UnsavableError(f"the backend {name}, whose class {cls.__qualname__} no plugin brings")
    fields = dataclasses.fields(cast(Any, backend))  # the registry takes no others
    try:
        return {f.name: encode(getattr(backend, f.name)) for f in fields if f.init}
    except UnsavableError as error:
        raise UnsavableError(f"a setting of the backend {name}: {error}") from error


def target_to_json(target: Target) -> dict[str, Any]:
    """A target as JSON."""
    return {**dataclasses.asdict(target), "device": str(target.device)}


def target_from_json(data: Mapping[str, Any]) -> Target:
    """The target that :func:`target_to_json` wrote."""
    device, features = torch.device(data["device"]), tuple(data["features"])
    return Target(**{**data, "device": device, "features": features})
