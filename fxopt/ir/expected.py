"""What a program expects of its inputs, and whether given ones fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class Expected:
    """What one flat input must be.

    Attributes:
        name: Name of the placeholder.
        dtype: The tensor's dtype; None for an input that is no tensor.
        sizes: The tensor's sizes; None where any will do.
        constant: The value of an input that is no tensor.
    """

    name: str
    dtype: torch.dtype | None
    sizes: tuple[int | None, ...] = ()
    constant: Any = None

    def mismatch(self, value: Any) -> str | None:
        """Why ``value`` does not fit; None when it does."""
        if isinstance(value, torch.Tensor) and value.dtype is self.dtype:
            return self._wrong_sizes(value)
        if self.dtype is None:
            same = type(value) is type(self.constant) and value == self.constant
            return None if same else f"it was {self.constant!r} at capture, and is {value!r}"
        if not isinstance(value, torch.Tensor):
            return f"a tensor is expected, got a {type(value).__name__}"
        return f"{self.dtype} is expected, got {value.dtype}"

    def _wrong_sizes(self, value: torch.Tensor) -> str | None:
        shape, sizes = value.shape, self.sizes
        batch_aside = sizes[:1] == (None,) and None not in sizes[1:]
        if batch_aside and shape[1:] == sizes[1:] and len(shape) == len(sizes):
            return None  # the usual case, at the price of one comparison
        if len(shape) == len(sizes):
            pairs = zip(sizes, shape, strict=True)
            if all(size is None or size == given for size, given in pairs):
                return None
        wanted = "x".join("any" if size is None else str(size) for size in self.sizes)
        return f"the shape {wanted} is expected, got {'x'.join(map(str, shape))}"


def expected_inputs(placeholders: Iterable[fx.Node]) -> tuple[Expected, ...]:
    """What each placeholder expects, from its ``meta["val"]``: symbolic sizes may be any."""
    return tuple(_expect(node) for node in placeholders)


def _expect(node: fx.Node) -> Expected:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return Expected(node.name, None, constant=value)
    sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
    return Expected(node.name, value.dtype, sizes)
