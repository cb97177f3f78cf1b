"""Batches of the user's, brought to where the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree


class Placed:
    """Batches whose tensors lie where the example inputs do; a DataLoader's lie on the CPU.

    Args:
        batches: The user's; they are walked anew each time.
        device: Where tensors are moved.
    """

    def __init__(self, batches: Iterable[Any], device: torch.device) -> None:
        self._batches, self._device = batches, device

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            tree = dict(batch) if isinstance(batch, Mapping) else batch  # of a tokenizer, say
            yield pytree.tree_map(self._moved, tree)

    def _moved(self, leaf: Any) -> Any:
        return leaf.to(self._device) if isinstance(leaf, torch.Tensor) else leaf


def placed(batches: Iterable[Any] | None, inputs: Any) -> Iterable[Any] | None:
    """The user's batches, if there are any, beside example inputs.

    Args:
        batches: The user's.
        inputs: Any tree of example inputs. Where they lie on several devices, or there are none,
            batches stay where they are.
    """
    leaves = pytree.tree_leaves(inputs)
    devices = {leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor)}
    return Placed(batches, devices.pop()) if batches is not None and len(devices) == 1 else batches
