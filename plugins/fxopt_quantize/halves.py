"""What is worked out about floats of 16 bits, and what of that is stored in them.

In float16 squares below 3e-8 are zero and sums end at 65504; a sum in bfloat16 keeps two digits.
"""

from __future__ import annotations

import torch


def wide(x: torch.Tensor) -> torch.Tensor:
    """The same numbers in float32, or in float64 if they were."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def storable(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Scales to divide by that are the same once they are stored.

    What is all but zero, so that dividing by its scale would be inexact, gets 1. Where the stored
    numbers are subnormal, and far apart, the next larger one is taken, so that nothing is cut off.

    Args:
        scale: In float32 or float64; not negative.
        dtype: What they will be stored in.

    Returns:
        Positive, in the dtype of ``scale``.
    """
    info = torch.finfo(dtype)
    apart = info.smallest_normal * info.eps
    raised = torch.where(scale < info.smallest_normal, (scale / apart).ceil() * apart, scale)
    dead = scale < torch.finfo(scale.dtype).smallest_normal
    return torch.where(dead, 1.0, raised.to(dtype).to(scale.dtype))
