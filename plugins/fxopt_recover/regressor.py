"""The linear map from a student's channels to its teacher's, which learns with the student."""

from __future__ import annotations

import torch
from torch import nn

_DAMPING = 1e-3  # of the mean square of a channel


def make_regressor(own: torch.Tensor, channels: int, wanted: int) -> nn.Module:
    """Nothing for as many channels; else a map that yields zeros until it is fitted.

    Args:
        own: What it will be applied to, for its type and device.
        channels: How many it takes, along the last dimension.
        wanted: How many it yields.
    """
    if channels == wanted:
        return nn.Identity()
    like = {"dtype": own.dtype, "device": own.device}
    regressor: nn.Linear = nn.utils.skip_init(nn.Linear, channels, wanted, **like)
    nn.init.zeros_(regressor.weight)
    nn.init.zeros_(regressor.bias)
    return regressor


@torch.no_grad()
def fit(regressor: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Begins with the ridge regression of some rows.

    Args:
        regressor: What :func:`make_regressor` has made; changed in place.
        x: (rows, its channels).
        y: (rows, wanted channels).
    """
    if not isinstance(regressor, nn.Linear):
        return
    x, y = x.double(), y.double()
    center, level = x.mean(0), y.mean(0)
    gram = (x - center).T @ (x - center)
    gram.diagonal().add_(_DAMPING * gram.diagonal().mean() + 1e-12)
    weight = torch.linalg.solve(gram, (x - center).T @ (y - level)).T
    regressor.weight.copy_(weight)
    regressor.bias.copy_(level - weight @ center)
