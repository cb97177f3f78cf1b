"""One training in several processes, on a device each: what they share, and what they agree on."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxopt.training.data import Batch

if TYPE_CHECKING:
    from accelerate import Accelerator


class Processes:
    """Those that ``accelerate launch`` or ``torchrun`` started; one alone as a rule.

    All walk the same data in the same order, and each takes its share of every batch, so that a
    training has as many steps, and the gradients, that it has in one process. (Batch norms see
    their own share alone, as is usual, and dropout draws anew in each.)

    Args:
        accelerator: Knows the processes, and connects them.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._count: int = accelerator.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and shows."""
        return bool(self._accelerator.is_main_process)

    def share(self, batch: Batch) -> Batch:
        """The rows of a batch that this process takes.

        All take as many, for the mean of their means to be the mean; where a batch does not
        divide, its first rows are taken once more.
        """
        if self._count == 1:
            return batch
        size = next((leaf.shape[0] for leaf in pytree.tree_leaves(batch) if _has_rows(leaf)), 0)
        each = -(-size // self._count)
        rows = (torch.arange(each) + each * self._accelerator.process_index) % max(1, size)

        def taken(leaf: Any) -> Any:
            return leaf[rows.to(leaf.device)] if _has_rows(leaf) and len(leaf) == size else leaf

        shared: Batch = pytree.tree_map(taken, batch)
        return shared

    @contextmanager
    def own_draws(self, *numbers: int) -> Iterator[None]:
        """What torch draws inside, such as dropout, differs from process to process.

        Outside all draw the same, as the order of data depends on it.

        Args:
            numbers: What draws depend on beside the process, such as the seed and the step.
        """
        if self._count == 1:
            yield
            return
        device = self._accelerator.device
        own = np.random.SeedSequence([*numbers, self._accelerator.process_index])
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(own.generate_state(1)[0]))
            yield

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over all processes, without gradients."""
        if self._count == 1:
            return value.detach()
        mean: torch.Tensor = self._accelerator.reduce(value.detach().clone(), "mean")
        return mean

    def any(self, flag: bool) -> bool:
        """Whether it is so in one process at least; all have to ask."""
        if self._count == 1:
            return flag
        return bool(self.mean(torch.tensor(float(flag), device=self._accelerator.device)))

    def align(self, module: nn.Module) -> None:
        """Gives all processes the weights and statistics of the first."""
        if self._count > 1:
            from accelerate.utils import broadcast

            broadcast([tensor.detach() for tensor in module.state_dict().values()])


def connect() -> Accelerator:
    """An accelerator that knows all processes.

    What it starts to connect them is ended before the interpreter is: a thread of gloo that lets
    go of a tensor later aborts a process whose work is done (pytorch/pytorch#190489). What the
    user has started is left to them.
    """
    from accelerate import Accelerator
    from torch import distributed

    theirs = distributed.is_available() and distributed.is_initialized()
    accelerator = Accelerator()
    if accelerator.num_processes > 1 and not theirs:
        atexit.register(accelerator.state.destroy_process_group)
    return accelerator


def _has_rows(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dim() > 0
