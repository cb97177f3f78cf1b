"""What the caller of ``fxopt.optimize`` asks for, checked before any work begins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fxopt.api.workers import first_worker, second_worker
from fxopt.backends import Backend
from fxopt.cost import Target, find_target
from fxopt.errors import InputError, NotYetError
from fxopt.passes import Exact, Pass
from fxopt.pipeline.isolation import Isolation
from fxopt.registry import Registry
from fxopt.training import Trainer, Training

_NOT_YET = {
    "latency_ms": "searching to a latency budget",
}


@dataclass(frozen=True)
class Request:
    """A checked request.

    Attributes:
        target: The machine to optimize for.
        registry: The plugins at hand.
        passes: What to run, in no particular order.
        backends: What may be tried for lowering.
        isolation: Where backends are tried first; None to try them in this process alone.
        beside: Where those that build slowly are tried at the same time; None to wait for them.
        missing: Backends that cannot be used here, with the reason.
        calibration: The user's batches.
        training: Trains what passes have changed; None where there are no data for it.
        evaluate: Scores a module; higher is better.
        max_drop: How much lower a score may be.
        max_drift: How large the relative output error may be.
        deadline: ``time.monotonic()`` at which nothing further is begun.
        workdir: Where dumps and the report go.
        seed: For whatever is random.
        progress: Takes a line to show.
    """

    target: Target
    registry: Registry
    passes: tuple[Pass, ...]
    backends: tuple[Backend, ...]
    isolation: Isolation | None
    beside: Isolation | None
    missing: tuple[tuple[str, str], ...]
    calibration: Iterable[Any] | None
    training: Trainer | None
    evaluate: Callable[[nn.Module], float] | None
    max_drop: float | None
    max_drift: float | None
    deadline: float | None
    workdir: Path | None
    seed: int
    progress: Callable[[str], None]


def make_request(
    registry: Registry,
    *,
    target: str,
    passes: str | Sequence[Pass] | None,
    calibration: Iterable[Any] | None,
    training: Training | None,
    evaluate: Callable[[nn.Module], float] | None,
    max_drop: float | None,
    max_drift: float | None,
    backends: Sequence[str] | None,
    time_limit: float | None,
    workdir: str | Path | None,
    seed: int,
    progress: Callable[[str], None] | None,
    **not_yet: Any,
) -> Request:
    """Checks the arguments of ``fxopt.optimize``.

    Raises:
        InputError: An argument that cannot be used.
        NotYetError: An argument that is not implemented yet.
    """
    for name, value in not_yet.items():
        if value is not None:
            raise NotYetError(
                f"{name}= is not there yet: {_NOT_YET[name]}", hint=f"leave {name} out"
            )
    _check_limits(max_drop=max_drop, max_drift=max_drift, time_limit=time_limit)
    _check_callables(evaluate, progress, calibration)
    if max_drop is not None and evaluate is None:
        raise InputError(
            "max_drop limits the drop of a score, and there is no evaluate",
            hint="give evaluate=, a function from a module to a score, or use max_drift",
        )
    if training is not None and not isinstance(training, Training):
        raise InputError(
            f"training is a {type(training).__name__}",
            hint="pass training=fxopt.Training(data=loader), which says how to train",
        )
    deadline = None if time_limit is None else time.monotonic() + time_limit
    folder, show = None if workdir is None else Path(workdir), progress or (lambda line: None)
    found = find_target(target)
    usable, missing = registry.available_backends(found, backends)
    return Request(
        target=found,
        registry=registry,
        passes=_choose_passes(registry, passes),
        backends=tuple(usable),
        isolation=first_worker(usable),
        beside=second_worker(usable, time_limit),
        missing=tuple(missing),
        # several passes and the final comparison walk it, so a one-shot iterator is kept
        calibration=list(calibration) if isinstance(calibration, Iterator) else calibration,
        training=_trainer(training, seed, folder, deadline, show),
        evaluate=evaluate,
        max_drop=max_drop,
        max_drift=max_drift,
        deadline=deadline,
        workdir=folder,
        seed=seed,
        progress=show,
    )


def _trainer(
    training: Training | None,
    seed: int,
    workdir: Path | None,
    deadline: float | None,
    progress: Callable[[str], None],
) -> Trainer | None:
    if training is None:
        return None
    folder = None if workdir is None else workdir / "training"
    return Trainer(training, seed=seed, folder=folder, deadline=deadline, progress=progress)


def _choose_passes(registry: Registry, passes: str | Sequence[Pass] | None) -> tuple[Pass, ...]:
    """What the user named; by default every exact pass that is installed."""
    if passes is None:
        exact = [cls for cls in registry.passes.values() if isinstance(cls.info.fidelity, Exact)]
        return tuple(cls() for cls in exact)
    if isinstance(passes, str):
        return tuple(registry.parse(passes))
    chosen = tuple(passes)
    for item in chosen:
        if not isinstance(item, Pass):
            raise InputError(
                f"passes holds {item!r}, which is no pass",
                hint="give a text such as 'fold_bn,quantize', or pass instances",
            )
    return chosen


def _check_limits(**limits: float | None) -> None:
    for name, value in limits.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
            raise InputError(f"{name}={value!r} is no number")
        if value < 0:
            raise InputError(f"{name}={value} is negative")


def _check_callables(evaluate: object, progress: object, calibration: object) -> None:
    for name, value in (("evaluate", evaluate), ("progress", progress)):
        if value is not None and not callable(value):
            raise InputError(f"{name}={value!r} cannot be called")
    if calibration is not None and not isinstance(calibration, Iterable):
        raise InputError(
            f"calibration is a {type(calibration).__name__}, not an iterable of batches",
            hint="give a list of batches, or a DataLoader that yields inputs without labels",
        )
