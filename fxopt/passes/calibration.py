"""Calibration data: any iterable of batches, as flat inputs of a program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from fxopt.errors import CalibrationError, InputError
from fxopt.ir import Signature


class Calibration:
    """Batches to calibrate on, in the order in which the user's iterable yields them.

    An iterator that can be walked only once is kept as a list, so that several passes see the
    same batches.

    Args:
        batches: Each a tensor, a tuple or list of positional inputs, or a dict of keyword inputs.
        signature: The program's signature, which flattens them.
        limit: At most so many batches are used.
    """

    def __init__(
        self, batches: Iterable[Any], signature: Signature, limit: int | None = None
    ) -> None:
        self._batches = list(_first(batches, limit)) if _walks_once(batches) else batches
        self._signature = signature
        self._limit = limit

    def __iter__(self) -> Iterator[list[Any]]:
        """Yields the flat inputs of each batch.

        Raises:
            CalibrationError: There is no batch, or one that the model does not take.
        """
        empty = True
        for batch in _first(self._batches, self._limit):
            empty = False
            yield self._flatten(batch)
        if empty:
            raise CalibrationError(
                "the calibration set is empty",
                hint="give an iterable of batches, such as a list of input tensors or a DataLoader",
            )

    def check(self) -> None:
        """Flattens the first batch.

        Raises:
            CalibrationError: There is none, or the model does not take it.
        """
        next(iter(self))

    def _flatten(self, batch: Any) -> list[Any]:
        args, kwargs = batch_arguments(batch)
        try:
            return self._signature.flatten(args, kwargs)
        except InputError as error:
            raise CalibrationError(
                "a calibration batch has another structure than the example inputs",
                where=error.where,
                hint="yield only the model's inputs: leave labels out, e.g. (x for x, _ in loader)",
            ) from error


def batch_arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as positional and keyword arguments of the model.

    Raises:
        CalibrationError: It is neither a tensor, a tuple, a list nor a mapping.
    """
    if isinstance(batch, torch.Tensor):
        return (batch,), {}
    if isinstance(batch, Mapping):
        return (), dict(batch)
    if isinstance(batch, (tuple, list)):
        return tuple(batch), {}
    raise CalibrationError(
        f"a calibration batch is a {type(batch).__name__}",
        hint="a batch is a tensor, a tuple of positional inputs or a dict of keyword inputs",
    )


def _walks_once(batches: Iterable[Any]) -> bool:
    return isinstance(batches, Iterator)


def _first(batches: Iterable[Any], limit: int | None) -> Iterator[Any]:
    for index, batch in enumerate(batches):
        if limit is not None and index >= limit:
            return
        yield batch
