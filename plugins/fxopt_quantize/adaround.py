"""AdaRound: learns for each weight whether to round it up or down.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020): equation 21,
the error of each layer's outputs, relaxed by the rectified sigmoid of equation 23 and driven to
whole decisions by the regulariser of equation 24. The expected error is a quadratic form of the
second moments of the inputs, so it is computed exactly instead of over batches that are drawn, and
counted in multiples of what the nearest integers give, so that one strength suits all layers.
"""

from __future__ import annotations

import torch

_STEPS = 2000  # a fifth of the paper's: exact gradients need no more
_FEWEST = 500
_WORK = 1e12  # multiply-adds that the steps on one weight may take
_RATE = 1e-2
_STRENGTH = 3.0  # of the regulariser, for an error of 1 a weight with the nearest integers
_WARM_UP = 0.2  # of the steps, without the regulariser
_SHARPEST, _SOFTEST = 20.0, 2.0  # exponents of the regulariser, from first to last
_LOW, _HIGH = -0.1, 1.1  # ends of the rectified sigmoid


def adaround(
    weight: torch.Tensor, scale: torch.Tensor, moments: torch.Tensor, limit: int
) -> torch.Tensor:
    """Integers next to the weights such that what outputs err by is small.

    Args:
        weight: As (groups, outputs, inputs).
        scale: Distance between the values of each output, as (groups, outputs, 1).
        moments: The mean of x x' over inputs x, as (groups, inputs, inputs).
        limit: The largest integer, and the smallest one's magnitude.

    Returns:
        Whole numbers in the shape of ``weight``.
    """
    exact = weight / scale
    below = exact.floor()
    start = ((exact - below) - _LOW) / (_HIGH - _LOW)
    error = (exact.round().clamp(-limit, limit) - exact) * scale
    unit = ((error @ moments) * error).mean().clamp_min(torch.finfo(weight.dtype).tiny)
    steps = int(min(_STEPS, max(_FEWEST, _WORK / (weight.numel() * weight.shape[2]))))
    with torch.enable_grad():
        choice = torch.logit(start).detach().requires_grad_()
        optimizer = torch.optim.Adam([choice], lr=_RATE)
        for step in range(steps):
            share = _rectified(choice)
            error = ((below + share).clamp(-limit, limit) - exact) * scale
            loss = ((error @ moments) * error).sum() / unit
            loss = loss + _STRENGTH * _undecided(share, step / steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (below + (choice.detach() > 0)).clamp_(-limit, limit)


def _rectified(choice: torch.Tensor) -> torch.Tensor:
    return (torch.sigmoid(choice) * (_HIGH - _LOW) + _LOW).clamp(0, 1)


def _undecided(share: torch.Tensor, progress: float) -> torch.Tensor:
    """How many weights are neither up nor down; the exponent falls along half a cosine."""
    if progress < _WARM_UP:
        return torch.zeros(())
    done = torch.tensor((progress - _WARM_UP) / (1 - _WARM_UP))
    exponent = _SOFTEST + (_SHARPEST - _SOFTEST) * 0.5 * (1 + torch.cos(done * torch.pi))
    return (1 - (2 * share - 1).abs() ** exponent).sum()
