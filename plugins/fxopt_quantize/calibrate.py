"""Runs a program on calibration batches and watches the values that are to be rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import fx

from fxopt.plugin import CalibrationError, Program
from fxopt_quantize.histogram import NotFiniteError


class Observer(Protocol):
    """Gathers statistics of a value."""

    def update(self, values: torch.Tensor) -> None:
        """Takes in one batch of values; raises NotFiniteError on NaN and infinity."""


class Watch(Protocol):
    """Sees what every node takes and yields."""

    def __call__(self, node: fx.Node, inputs: Sequence[Any], value: Any) -> None:
        """Takes in one batch; raises NotFiniteError on NaN and infinity where they matter."""


def values_of(observers: Mapping[fx.Node, Observer]) -> Watch:
    """Shows the value of each node to its observer, if it has one."""

    def watch(node: fx.Node, inputs: Sequence[Any], value: Any) -> None:
        if node in observers:
            observers[node].update(value)

    return watch


def observe(
    program: Program,
    calibration: Iterable[list[Any]],
    watch: Watch,
    *,
    samples: int,
    progress: Callable[[str], None],
    task: str,
    remedy: Callable[[fx.Node], str],
) -> int:
    """Runs ``program`` in eval mode, batch by batch, and has it watched.

    Args:
        program: Its weights are not changed.
        calibration: The batches.
        watch: Is shown each node, what it takes and what it yields.
        samples: No further batch is begun once so many samples were seen.
        progress: Takes a line after each batch.
        task: What that line calls it.
        remedy: The settings by which a value is no longer watched, for the user.

    Returns:
        How many samples were seen.

    Raises:
        CalibrationError: There is no batch or no sample in any, the program does not take one, or
            a value that is watched is NaN or infinite.
    """
    seen = 0
    walk = _Walk(program.module, watch, remedy)
    with torch.no_grad(), eval_mode(program.module):
        for index, batch in enumerate(calibration):
            _run(walk, batch, index)
            seen += _count(program, batch)
            progress(f"{task}: {seen} samples")
            if seen >= samples:
                break
    if not seen:
        raise CalibrationError(
            "there is no sample in any calibration batch",
            hint="yield batches whose first dimension is not 0",
        )
    return seen


class _Walk(fx.Interpreter):
    """Runs the graph node by node; values are dropped after their last use."""

    def __init__(
        self, module: fx.GraphModule, watch: Watch, remedy: Callable[[fx.Node], str]
    ) -> None:
        super().__init__(module)
        self._watch = watch
        self._remedy = remedy
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        inputs, _ = self.fetch_args_kwargs_from_env(n)
        value = super().run_node(n)
        try:
            self._watch(n, inputs, value)
        except NotFiniteError as error:
            blamed = error.node or n
            raise CalibrationError(
                f"the output of {describe(blamed)} is NaN or infinite",
                where=blamed.meta.get("source"),
                hint="check the batch and the model's weights for NaN, or if that is meant to be "
                f"so, leave what takes it in float: {self._remedy(blamed)}",
            ) from None
        return value


def _run(walk: _Walk, batch: list[Any], index: int) -> None:
    try:
        walk.run(*batch)
    except CalibrationError as error:
        where = ", ".join(filter(None, (error.where, f"calibration batch {index}")))
        raise CalibrationError(error.what, where=where, hint=error.hint) from None
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise CalibrationError(
            f"the model does not take calibration batch {index}: {error}",
            hint="yield batches of the shape and dtype of the example inputs; only the batch size "
            "may differ",
        ) from error


def _count(program: Program, batch: Iterable[Any]) -> int:
    first = next((item for item in batch if isinstance(item, torch.Tensor) and item.dim()), None)
    return len(first) if program.signature.batch and first is not None else 1


def describe(node: fx.Node) -> str:
    """What the user knows a value as."""
    return str(node.target) if node.op == "call_module" else f"%{node.name}"


@contextmanager
def eval_mode(module: torch.nn.Module) -> Iterator[None]:
    """All of ``module`` is in eval mode inside, and in the modes it had outside."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True
