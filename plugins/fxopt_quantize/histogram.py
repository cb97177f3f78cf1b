"""Statistics of activations, gathered batch by batch in bounded memory."""

from __future__ import annotations

import math

import torch
from torch import fx

_BINS = 8192
_NEWEST = 0.1  # weight of the newest batch in a moving average
_CHUNK = 1 << 22  # values binned at a time: bounds the memory for their bins' numbers


class NotFiniteError(ValueError):
    """A tensor holds NaN or infinity.

    Args:
        node: What yielded it, where that is not the node that is being watched.
    """

    def __init__(self, node: fx.Node | None = None) -> None:
        super().__init__()
        self.node = node


class Histogram:
    """A histogram whose range grows with the data.

    The bins are centred on zero and their width is a power of two. When a value lies outside,
    the width is doubled and neighbouring bins are merged, which moves no count across an edge of
    the wider bins: so the result depends neither on the order of the batches nor on how the
    data were divided into them.

    Attributes:
        minimum: The smallest value seen; 0 before any.
        maximum: The largest value seen; 0 before any.
        counts: How many values lie in each bin.
        width: Width of a bin; 0 while only zeros were seen.
    """

    def __init__(self) -> None:
        self.minimum = 0.0
        self.maximum = 0.0
        self.width = 0.0
        self.counts = torch.zeros(_BINS, dtype=torch.float64)
        self._zeros = 0  # exact ones; they count in the bin above zero, too
        self._tiny = 0  # values before there were bins, which belong there

    def update(self, values: torch.Tensor) -> None:
        """Adds all values of a tensor.

        Raises:
            NotFiniteError: There is NaN or infinity among them.
        """
        if values.numel() == 0:
            return
        flat = values.detach().reshape(-1).float()
        low, high = (float(bound) for bound in torch.aminmax(flat))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise NotFiniteError
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._widen(max(-low, high))
        self._zeros += flat.numel() - int(torch.count_nonzero(flat))
        if self.width == 0.0:
            self._tiny += flat.numel()
            return
        for chunk in flat.split(_CHUNK):
            # Dividing by a power of two is exact; torch.histc would round at the edges.
            bins = torch.floor(chunk / self.width).long() + _BINS // 2
            self.counts += torch.bincount(bins, minlength=_BINS).cpu()

    @property
    def constant(self) -> bool:
        """Whether all values are one and the same, as nearly as bins can tell."""
        return self.width > 0 and int((self.counts > 0).sum()) == 1

    def centers(self) -> torch.Tensor:
        """The middle of each bin."""
        return (torch.arange(_BINS, dtype=torch.float64) - _BINS / 2 + 0.5) * self.width

    def filled(self, *, zeros: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Middles and counts of the bins that hold something, in order; be it but zeros or not."""
        counts = self.counts.clone()
        if not zeros:
            counts[_BINS // 2] -= self._zeros
        holding = counts > 0
        return self.centers()[holding], counts[holding]

    def _widen(self, magnitude: float) -> None:
        needed = _width_for(magnitude)
        if self.width == 0.0 and needed:
            self.width = needed
            self.counts[_BINS // 2] += self._tiny
        while self.width < needed:
            self._merge()

    def _merge(self) -> None:
        """Halves the resolution: bin i of the upper half goes to i // 2, mirrored below zero."""
        pairs = self.counts.reshape(-1, 2).sum(1)
        self.counts = torch.zeros_like(self.counts)
        quarter = _BINS // 4
        self.counts[quarter : quarter + len(pairs)] = pairs
        self.width *= 2


def _width_for(magnitude: float) -> float:
    """The smallest power of two for which ``magnitude`` lies inside the bins."""
    if magnitude < torch.finfo(torch.float32).tiny:
        return 0.0
    width = 2.0 ** math.floor(math.log2(magnitude) - math.log2(_BINS / 2))
    while magnitude >= width * _BINS / 2:
        width *= 2
    return width


class MovingRange:
    """Moving averages of the smallest and the largest value of each batch.

    As for training in Jacob et al. (2018), section 3.1. Unlike a histogram, it depends on how the
    data are divided into batches, and on their order; it forgets the first ones by and by.

    Attributes:
        minimum: The average of the smallest values, at most 0.
        maximum: The average of the largest values, at least 0.
    """

    def __init__(self) -> None:
        self.minimum = 0.0
        self.maximum = 0.0
        self._empty = True

    def update(self, values: torch.Tensor) -> None:
        """Adds one batch.

        Raises:
            NotFiniteError: There is NaN or infinity in it.
        """
        if values.numel() == 0:
            return
        low, high = (float(bound) for bound in torch.aminmax(values.detach().float()))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise NotFiniteError
        weight = 1.0 if self._empty else _NEWEST
        self.minimum += weight * (min(low, 0.0) - self.minimum)
        self.maximum += weight * (max(high, 0.0) - self.maximum)
        self._empty = False


class ChannelRange:
    """The smallest and largest value of each channel (dimension 1).

    Attributes:
        minimum: Per channel, at most 0.
        maximum: Per channel, at least 0.
    """

    def __init__(self) -> None:
        self.minimum = torch.zeros(())
        self.maximum = torch.zeros(())

    @property
    def dead(self) -> int:
        """How many channels were all zero."""
        return int(((self.minimum == 0) & (self.maximum == 0)).sum())

    def update(self, values: torch.Tensor) -> None:
        """Adds a tensor of shape (batch, channels, ...).

        Raises:
            NotFiniteError: There is NaN or infinity in it.
        """
        if values.numel() == 0:
            return
        low, high = torch.aminmax(values.detach().transpose(0, 1).flatten(1).float(), dim=1)
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise NotFiniteError
        self.minimum = torch.minimum(self.minimum, low)
        self.maximum = torch.maximum(self.maximum, high)
