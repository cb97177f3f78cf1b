"""Walking over training data: the same order for the same seed and epoch."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from fxopt.errors import InputError

Batch = tuple[tuple[Any, ...], dict[str, Any], Any]
"""Positional inputs, keyword inputs, and the target; None where there are no labels."""


def walk(data: Iterable[Any], labelled: bool, seed: int) -> Iterator[Batch]:
    """The batches of an epoch.

    All random number generators start at ``seed``, those of a DataLoader and its samplers too, so
    the order of shuffled data is the same each time.

    Args:
        data: The user's.
        labelled: Whether batches are pairs of inputs and target.
        seed: Of this epoch.

    Raises:
        InputError: There is no batch, or one has not the form it should have.
    """
    seed_all(seed)
    for generator in _generators(data):
        generator.manual_seed(seed)
    empty = True
    for batch in data:
        empty = False
        yield _split(batch, labelled)
    if empty:
        raise InputError("training: there is no batch in the data")


def check(data: Iterable[Any], labelled: bool) -> None:
    """Looks at the first batch.

    Raises:
        InputError: There is none, or it has not the form it should have.
    """
    for batch in data:
        _split(batch, labelled)
        return
    raise InputError("training: there is no batch in the data")


def count(data: Iterable[Any]) -> int:
    """How many batches an epoch has; data that cannot say so are walked once."""
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:  # a DataLoader of data without a length has one, which raises
        return sum(1 for _ in data)


def seed_all(seed: int) -> None:
    """Starts the random numbers of torch, NumPy and Python."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def _generators(data: Iterable[Any]) -> Iterator[torch.Generator]:
    batches = getattr(data, "batch_sampler", None)
    samplers = (getattr(data, "sampler", None), batches, getattr(batches, "sampler", None))
    for owner in (data, *samplers):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            yield generator


def _split(batch: Any, labelled: bool) -> Batch:
    target = None
    if labelled:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise InputError(
                f"training: a batch is {_described(batch)}, not a pair of inputs and target",
                hint="yield (inputs, target), or use loss=None for data without labels",
            )
        batch, target = batch
    if isinstance(batch, torch.Tensor):
        return (batch,), {}, target
    if isinstance(batch, Mapping):
        return (), dict(batch), target
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}, target
    raise InputError(
        f"training: the inputs of a batch are {_described(batch)}",
        hint="inputs are a tensor, a tuple of positional inputs or a dict of keyword inputs",
    )


def _described(batch: Any) -> str:
    length = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    return f"a {type(batch).__name__}{length}"
