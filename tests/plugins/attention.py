"""Attention with masks, for the runtimes that lower it."""

import torch
from torch import nn


class Masked(nn.Module):
    """Attention whose mask is an input, or a constant."""

    def __init__(self, mask=None):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x, mask=None):
        mask = self.mask if mask is None else mask
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def queries_without_keys(kind, rank):
    """Values and a mask, boolean or float, that leaves the second query of the first sample no key.

    Of four dimensions, it leaves the second sample none at all.
    """
    x, mask = torch.randn(2, 3, 5, 4), torch.rand(2, 1, 5, 5) > 0.3
    mask[0, :, 1], mask[1] = False, False
    if kind == "float":
        mask = torch.randn(mask.shape).masked_fill(~mask, -float("inf"))
    return x, mask if rank == 4 else mask[0, 0]
