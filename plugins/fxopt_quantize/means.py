"""A mean that is gathered batch by batch."""

from __future__ import annotations

import torch

from fxopt_quantize.halves import wide


class RunningMean:
    """The mean over all batches, each weighed by how much it holds.

    Attributes:
        count: How much was seen.
        value: The mean, in float32 or float64; a scalar zero where nothing was.
    """

    def __init__(self) -> None:
        self.count = 0
        self.value = torch.zeros(())

    def update(self, mean: torch.Tensor, count: int) -> None:
        """Adds a batch by its own mean; one that holds nothing changes nothing."""
        if count:
            self.count += count
            self.value = self.value + (wide(mean) - self.value) * (count / self.count)
