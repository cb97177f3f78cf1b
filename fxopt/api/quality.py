"""What optimization cost in quality, measured on the emitted module as the user calls it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxopt.errors import CalibrationError, FxoptError, InputError
from fxopt.frontend import buffers_restored, own_inputs
from fxopt.pipeline import compare, full_precision
from fxopt.pipeline.sandbox import evaluating
from fxopt.pipeline.scoring import as_number

Call = tuple[tuple[Any, ...], dict[str, Any]]

MAX_CALLS = 16  # calibration batches that the final comparison runs on


@dataclass(frozen=True)
class Quality:
    """How far two models are apart.

    Attributes:
        drift: The largest relative output error over all batches.
        same_top1: Rows whose largest output is the same one, and how many rows there were; None
            where the first output is no matrix of scores.
    """

    drift: float
    same_top1: tuple[int, int] | None


def compare_models(
    original: nn.Module,
    optimized: nn.Module,
    calls: Iterable[Call],
    known: tuple[Sequence[Any] | None, Sequence[Any] | None] = (None, None),
) -> Quality:
    """Runs both models on some calls and compares their outputs.

    Args:
        original: What is compared with.
        optimized: What is compared.
        calls: Inputs for both.
        known: What the two yield for the first call, as :func:`flat_outputs` gives it, or None.

    Raises:
        CalibrationError: The original does not take one of the calls.
    """
    drift, same, rows = 0.0, 0, 0
    for args, kwargs in calls:
        first, second = known
        expected = _expected(original, args, kwargs) if first is None else first
        actual = _outputs(optimized, args, kwargs) if second is None else second
        known = None, None
        drift = max(drift, compare(actual, expected).error)
        agreeing, counted = _agreement(actual, expected)
        same, rows = same + agreeing, rows + counted
    return Quality(drift, (same, rows) if rows else None)


def score_of(evaluate: Callable[[nn.Module], float], module: nn.Module) -> float:
    """The user's score of a module, which is in eval mode, and in its own mode again afterwards.

    Raises:
        InputError: ``evaluate`` raised, or returned no number.
    """
    try:
        with evaluating(module):  # many end with .train(), and batch norms would go on learning
            score = evaluate(module)
    except FxoptError:
        raise
    except Exception as error:
        raise InputError(
            f"evaluate raised {type(error).__name__}: {error}",
            hint="evaluate takes a module, called as the original is, and returns a number",
        ) from error
    return as_number(score)


def flat_outputs(outputs: Any) -> list[Any]:
    """The tensors and plain values of what a model returned, to be compared with another's."""
    return list(_values(outputs, set()))


def _expected(original: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    try:
        return _outputs(original, args, kwargs)
    except Exception as error:
        raise CalibrationError(
            f"the model fails on a calibration batch: {type(error).__name__}: {error}",
            hint="its batches must be like the example inputs in dtype, device and sizes",
        ) from error


def _outputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    args, kwargs = own_inputs((args, kwargs))  # a model may write to its inputs, or to its buffers
    with torch.no_grad(), full_precision(), buffers_restored(module):
        return flat_outputs(module(*args, **kwargs))


def _values(outputs: Any, met: set[int]) -> Iterator[Any]:
    """The tensors and plain values of outputs, also of those in attributes of objects.

    A Python model may return objects of any class, such as a dataclass, which seldom say whether
    they are equal.
    """
    for leaf in pytree.tree_leaves(outputs):
        if leaf is None or isinstance(leaf, (torch.Tensor, int, float, complex, str)):
            yield leaf
        elif id(leaf) not in met:
            met.add(id(leaf))
            yield from _values(_attributes(leaf), met)


def _attributes(thing: Any) -> dict[str, Any]:
    slots = {name: getattr(thing, name, None) for name in getattr(thing, "__slots__", ())}
    return slots | getattr(thing, "__dict__", {})


def _agreement(actual: Sequence[Any], expected: Sequence[Any]) -> tuple[int, int]:
    scores, reference = actual[0] if actual else None, expected[0] if expected else None
    if not isinstance(scores, torch.Tensor) or not isinstance(reference, torch.Tensor):
        return 0, 0
    if scores.dim() != 2 or scores.shape[1] < 2 or not scores.is_floating_point():
        return 0, 0
    return int((scores.argmax(1) == reference.argmax(1)).sum()), len(scores)
