"""What each output of a convolution is a product with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def windows(
    x: torch.Tensor,
    *,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[int],
    padding_mode: str = "zeros",
) -> torch.Tensor:
    """The windows that a convolution slides over its input, as a view where nothing is padded.

    Args:
        x: Of shape (batch, channels, *space).
        kernel: Its size, dimension by dimension.
        stride: Steps between windows.
        dilation: Steps within a window.
        pads: As ``torch.nn.functional.pad`` takes them, the last dimension first.
        padding_mode: As of ``torch.nn.Conv2d``.

    Returns:
        Of shape (batch, channels, *output space, *kernel).
    """
    x = F.pad(x, list(pads), mode="constant" if padding_mode == "zeros" else padding_mode)
    spatial = range(2, 2 + len(kernel))
    for dim, size, step, apart in zip(spatial, kernel, stride, dilation, strict=True):
        x = x.unfold(dim, (size - 1) * apart + 1, step)[..., ::apart]
    return x
