"""Which dimension of example inputs is the batch, and the same inputs at another size."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

T = TypeVar("T")

_FEW = 3  # the smallest size that nothing treats as a case of its own


def batch_size(inputs: Any) -> int | None:
    """The batch of example inputs: the first dimension of their first tensor that has one."""
    return next((t.shape[0] for t in _tensors(inputs)), None)


def another_size(size: int) -> int:
    """A batch size to compare at besides ``size``; a small one, since that is done often."""
    return _FEW if size > _FEW else size + 1


def batched_tensors(inputs: Any) -> list[torch.Tensor]:
    """The tensors whose first dimension is as long as the batch."""
    size = batch_size(inputs)
    return [leaf for leaf in pytree.tree_leaves(inputs) if is_batched(leaf, size)]


def is_batched(leaf: Any, size: int | None) -> bool:
    """Whether a leaf is a tensor of that many rows."""
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0 and leaf.shape[0] == size


def with_batch(inputs: T, size: int) -> T:
    """Resizes example inputs to another batch size.

    Rows are repeated and rotated, so that a program which mixes up its rows is noticed. An empty
    batch is filled with random rows, or zeros where the numbers are whole.

    Args:
        inputs: Any nesting of tensors, such as (args, kwargs).
        size: The wanted batch size.

    Returns:
        The same nesting with the batched tensors resized.
    """
    batch = batch_size(inputs)
    resize = _Resize(batch, size)
    return pytree.tree_map(resize, inputs)  # type: ignore[no-any-return]


class _Resize:
    def __init__(self, batch: int | None, size: int) -> None:
        self._batch, self._size = batch, size

    def __call__(self, leaf: Any) -> Any:
        if not is_batched(leaf, self._batch):
            return leaf
        if not self._batch:
            return _rows(leaf, self._size)
        rows = (torch.arange(self._size, device=leaf.device) + 1) % self._batch
        return leaf.detach()[rows] if self._batch > 1 else _vary(leaf.detach(), rows)


def _rows(like: torch.Tensor, size: int) -> torch.Tensor:
    shape = (size, *like.shape[1:])
    if not like.is_floating_point():
        return like.new_zeros(shape)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like)


def _vary(leaf: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Repeats one row, each rotated by its number along the longest of the other dimensions."""
    if leaf.dim() == 1:
        return leaf[rows]
    dim = max(range(leaf.dim() - 1), key=lambda d: leaf.shape[d + 1])
    return torch.stack([leaf[0].roll(i, dim) for i in range(len(rows))])


def _tensors(inputs: Any) -> list[torch.Tensor]:
    leaves = pytree.tree_leaves(inputs)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim() > 0]
