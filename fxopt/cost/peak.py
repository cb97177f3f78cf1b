"""What the CPU's arithmetic can do at best, measured."""

from __future__ import annotations

import functools
import time

import torch

_SIZE = 768
_TIMES = 12


@functools.cache
def peak_products(threads: int) -> float:
    """float32 multiply-adds a millisecond in torch's matrix product, the fastest of a few.

    Takes a tenth of a second, once in a process.

    Args:
        threads: How many torch uses now.
    """
    with torch.no_grad():
        left, right = torch.ones(2, _SIZE, _SIZE, dtype=torch.float32, device="cpu")
        return _SIZE**3 / min(_milliseconds(left, right) for _ in range(_TIMES))


def _milliseconds(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.mm(left, right)
    return (time.perf_counter() - start) * 1e3
