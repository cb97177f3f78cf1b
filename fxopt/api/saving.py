"""Optimized models as files, which hold weights, a graph and a report, and no code."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fxopt.cost import find_target
from fxopt.emit import SOURCE, OptimizedModule, emit, public_name
from fxopt.errors import SavingError
from fxopt.ir import Program
from fxopt.ir.saving import load_beside, load_program, save_program
from fxopt.ir.saving.values import UnsavableError
from fxopt.pipeline.assignment import Assignment
from fxopt.pipeline.isolation.records import assignment_from_json, assignment_to_json
from fxopt.pipeline.lowering.first_use import compare_on_first_use
from fxopt.registry import default_registry
from fxopt.report import report_from_json, report_to_json

_FILE = "model.fxopt"


@dataclass(frozen=True)
class Source:
    """What an optimized module was made from.

    Attributes:
        program: What it runs.
        assignment: Which backend takes what of it.
        names: Names of the positional arguments of the user's ``forward``.
        tolerance: Relative output error against the original that it may show.
    """

    program: Program
    assignment: Assignment
    names: tuple[str, ...]
    tolerance: float

    def reduce(self, module: OptimizedModule) -> tuple[Any, ...]:
        """Has ``module`` pickled as the bytes that :func:`save` writes.

        Raises:
            SavingError: Something in it has no form in a file.
        """
        with TemporaryDirectory(prefix="fxopt-") as folder:
            path = Path(folder, _FILE)
            save(module, path)
            return _unpickled, (path.read_bytes(), module.training)


def _unpickled(data: bytes, training: bool) -> OptimizedModule:
    with TemporaryDirectory(prefix="fxopt-") as folder:
        path = Path(folder, _FILE)
        path.write_bytes(data)
        return load(path).train(training)


def keep_source(module: OptimizedModule, source: Source) -> OptimizedModule:
    """Keeps with a module what it takes to save it, through copies too."""
    module.meta[SOURCE] = source
    return module


def source_of(module: OptimizedModule) -> Source | None:
    """What was kept with a module; None where a part of it is Python."""
    source = module.meta.get(SOURCE)
    return source if isinstance(source, Source) else None


def save(module: OptimizedModule, path: str | os.PathLike[str]) -> None:
    """Writes an optimized model to one safetensors file, with its report and choice of backends.

    The weights are those that it has now. The file holds no compiled code, which would fit this
    machine alone, and nothing that is executed when it is read.

    Args:
        module: As :func:`fxopt.optimize` returned it, or a copy.
        path: Where to; a file that is there is replaced.

    Raises:
        SavingError: A part of the model stayed Python, or something in it has no form in a file.
    """
    source = source_of(module)
    if source is None:
        raise SavingError(
            "this model cannot be saved: it was not captured whole, so a part of it is Python",
            hint="optimize and save the parts that can be captured, or save its state_dict()",
        )
    program = _with_weights_of(module, source.program)
    try:
        shares = assignment_to_json(source.assignment, default_registry())
    except UnsavableError as error:
        raise SavingError(f"this model cannot be saved because of {error}") from error
    beside = {
        "shares": shares,
        "names": list(source.names),
        "tolerance": source.tolerance,
        "report": json.loads(report_to_json(module.report)),
    }
    save_program(program, path, beside)


def _with_weights_of(module: OptimizedModule, program: Program) -> Program:
    """The program with the weights that the module has now: it may have been trained."""
    program = program.clone()
    names = {public_name(name): name for name in program.module.state_dict()}
    weights = {names.get(name, name): weight for name, weight in module.state_dict().items()}
    unknown = program.module.load_state_dict(weights, strict=False).unexpected_keys
    if unknown:  # what the graph does not use may be missing, but nothing may be lost
        raise SavingError(f"this model has weights that its program has not: {', '.join(unknown)}")
    return program


def load(path: str | os.PathLike[str], *, lowered: bool = True) -> OptimizedModule:
    """Reads a model that :func:`save` wrote. The class of the original is not needed.

    Its regions run on the backends that were found to be the fastest where it was optimized, and
    are compiled on the first call. They are compared with torch then, as at each further input
    shape: where one is wrong on this machine, torch runs in its place, with a warning. Weights that
    compiled code has packed for itself then leave memory: meanwhile they lie in files without a
    name in the folder for temporary files.

    Args:
        path: The file.
        lowered: Whether to do so; if not, everything runs as plain torch, anywhere.

    Raises:
        SavingError: The file cannot be read, is damaged, or needs a plugin that is not installed.
        InputError: No plugin brings the backend that it runs on.
        BackendError: That backend is not installed, or does not run on this machine.
    """
    registry, target = default_registry(), find_target("cpu")
    packages = {plugin.origin.module.partition(".")[0] for plugin in registry.plugins}
    program = load_program(path, packages=packages, pageable=lowered)
    beside = load_beside(path)
    with _explained(path):
        names = tuple(str(name) for name in beside["names"])
        tolerance = float(beside.get("tolerance", math.inf))  # older files have none
        report = report_from_json(json.dumps(beside["report"]))
        shares = list(beside["shares"]) if lowered else []
        backends = [str(share["backend"]) for share in shares]
    if backends:
        registry.available_backends(target, backends)
    with _explained(path):
        assignment = assignment_from_json(shares, registry)
    module = emit(assignment.applied(program, target), names).attach(report)
    compare_on_first_use(module, tolerance)
    return keep_source(module, Source(program, assignment, names, tolerance))


@contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SavingError(f"{path} is damaged, or no optimized model: {error!r}") from error
