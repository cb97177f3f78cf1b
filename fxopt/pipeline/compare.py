"""How far two lists of flat outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fxopt.ir.text import describe_value


@dataclass(frozen=True)
class Comparison:
    """The distance of outputs from their reference.

    Attributes:
        error: For floats, the norm of the difference over the norm of the reference (the norm
            alone where the reference is zero); for whole numbers and booleans, the share of
            entries that differ; infinite where the two cannot be compared.
        where: Which output it is, and in words what does not fit.
    """

    error: float
    where: str


def compare(outputs: Sequence[Any], reference: Sequence[Any]) -> Comparison:
    """Compares flat outputs in float64; the worst output counts.

    Args:
        outputs: Tensors, or plain values.
        reference: What they should be.
    """
    return max(compare_each(outputs, reference), key=lambda each: each.error, default=_NOTHING)


def compare_each(outputs: Sequence[Any], reference: Sequence[Any]) -> list[Comparison]:
    """Compares output by output; one comparison in all where their numbers differ."""
    if len(outputs) != len(reference):
        return [Comparison(math.inf, f"there are {len(outputs)} outputs for {len(reference)}")]
    return [
        _compare_one(f"output {index}", output, expected)
        for index, (output, expected) in enumerate(zip(outputs, reference, strict=True))
    ]


def beyond(
    outputs: Sequence[Any],
    reference: Sequence[Any],
    tolerance: Callable[[torch.dtype], float],
) -> tuple[Comparison, float] | None:
    """The first output that is further from its reference than its dtype allows.

    Args:
        outputs: Flat outputs.
        reference: What they should be.
        tolerance: The relative error allowed for an output of a dtype.

    Returns:
        The comparison and the error that is allowed; None when all are close enough.
    """
    for index, each in enumerate(compare_each(outputs, reference)):
        expected = reference[index] if index < len(reference) else None
        allowed = tolerance(expected.dtype) if isinstance(expected, torch.Tensor) else 0.0
        if not each.error <= allowed:
            return each, allowed
    return None


_NOTHING = Comparison(0.0, "there are no outputs")


def _compare_one(name: str, output: Any, expected: Any) -> Comparison:
    if not isinstance(output, torch.Tensor) or not isinstance(expected, torch.Tensor):
        return _compare_plain(name, output, expected)
    if output.shape != expected.shape or output.dtype != expected.dtype:
        found, wanted = describe_value(output), describe_value(expected)
        return Comparison(math.inf, f"{name} is {found}, not {wanted}")
    if not (expected.is_floating_point() or expected.is_complex()):
        return Comparison(_share_that_differs(output, expected), name)
    first, second = _as_float64(output), _as_float64(expected)
    problem = _special_values_differ(first, second)
    if problem:
        return Comparison(math.inf, f"{name} {problem}")
    finite = torch.isfinite(second)
    return Comparison(_relative_error(first[finite], second[finite]), name)


def _compare_plain(name: str, output: Any, expected: Any) -> Comparison:
    if type(output) is not type(expected):
        kinds = f"a {type(output).__name__}, not a {type(expected).__name__}"
        return Comparison(math.inf, f"{name} is {kinds}")
    if isinstance(expected, float):
        pair = torch.tensor([output, expected], dtype=torch.float64)
        return _compare_one(name, pair[0], pair[1])
    return Comparison(0.0 if output == expected else 1.0, name)


def _share_that_differs(output: torch.Tensor, expected: torch.Tensor) -> float:
    if not expected.numel():
        return 0.0
    return float((output.cpu() != expected.cpu()).double().mean())


def _as_float64(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.to("cpu", torch.float64).reshape(-1)


def _special_values_differ(output: torch.Tensor, expected: torch.Tensor) -> str | None:
    if not torch.equal(torch.isnan(output), torch.isnan(expected)):
        return "has NaN where the reference has none, or the other way round"
    infinite = torch.isinf(output) | torch.isinf(expected)
    if not torch.equal(output[infinite], expected[infinite]):
        return "has infinite values where the reference has none, or the other way round"
    return None


def _relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    if not expected.numel():
        return 0.0
    scale = expected.abs().max()  # dividing by it keeps the squares of huge values finite
    if scale == 0:
        return float(output.norm())
    difference = (output / scale - expected / scale).norm()
    return float(difference / (expected / scale).norm())
