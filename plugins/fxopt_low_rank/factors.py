"""Factorizations of a weight: by the outputs, in space, by Tucker, by CP; each in closed form.

A weight is seen as (outputs, inputs, *taps); a linear layer has no taps. What counts is the error
of the outputs on inputs of covariance C, and not that of the weight: with W times C's square root,
the singular value decomposition gives the least one (as in Zhang et al., "Accelerating Very Deep
Convolutional Networks for Classification and Detection", 2015, which does it by the responses).
Without data, C is the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Method = Literal["svd", "spatial", "tucker", "cp", "separable"]

Shape = Sequence[int]
"""Outputs, inputs and taps of a weight."""


@dataclass(frozen=True)
class Stage:
    """One of the thinner layers.

    Attributes:
        weight: As a layer has it, in float64.
        dims: Which of the spatial dimensions it slides over.
        groups: Of the channels; as many as there are inputs where each has kernels of its own.
    """

    weight: torch.Tensor
    dims: tuple[int, ...] = ()
    groups: int = 1


Stages = list[Stage]

Basis = tuple[torch.Tensor, torch.Tensor]
"""The covariances of inputs and outputs, each (channels, channels)."""


def by_outputs(weight: torch.Tensor, rank: int, basis: Basis) -> Stages:
    """The same layer with ``rank`` outputs, then a mixture of those.

    They are the main directions of what it yields.
    """
    directions = _leading(basis[1], rank)  # (outputs, rank)
    thin = torch.einsum("or,oi...->ri...", directions, weight)
    every = tuple(range(weight.dim() - 2))
    return [Stage(thin, every), Stage(_pointwise(directions, weight))]


def in_space(weight: torch.Tensor, rank: int, basis: Basis) -> Stages:
    """A column, then a row.

    Jaderberg et al., "Speeding up Convolutional Neural Networks with Low Rank Expansions" (2014).
    """
    outputs, inputs, height, width = weight.shape
    root, inverse = _roots(basis[0])
    heavy = torch.einsum("ij,ojhw->ihow", root, weight).reshape(inputs * height, outputs * width)
    u, s, v = torch.linalg.svd(heavy, full_matrices=False)
    scale = s[:rank].sqrt()
    column = torch.einsum("ij,jhr->rih", inverse, (u[:, :rank] * scale).reshape(inputs, height, -1))
    row = (v[:rank].T * scale).reshape(outputs, width, -1).permute(0, 2, 1)
    return [Stage(column[..., None], (0,)), Stage(row[:, :, None], (1,))]


def by_tucker(weight: torch.Tensor, rank: int, basis: Basis) -> Stages:
    """Fewer inputs, a small core, more outputs again: Tucker-2.

    Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
    Applications" (2016). ``rank`` is that of the larger side; the other is in proportion.
    """
    outputs, inputs = weight.shape[:2]
    most = max(outputs, inputs)
    ranks = [max(1, round(rank * side / most)) for side in (outputs, inputs)]
    root, inverse = _roots(basis[0])
    directions = _leading(basis[1], ranks[0])
    heavy = torch.einsum("ij,oj...->oi...", root, weight)
    flat = heavy.movedim(1, 0).flatten(1)
    mixing = _leading(flat @ flat.T, ranks[1])  # (inputs, rank)
    core = torch.einsum("or,oi...,is->rs...", directions, heavy, mixing)
    every = tuple(range(weight.dim() - 2))
    return [
        Stage(_pointwise(mixing.T @ inverse, weight)),
        Stage(core, every),
        Stage(_pointwise(directions, weight)),
    ]


def by_cp(weight: torch.Tensor, rank: int, basis: Basis) -> Stages:
    """A sum of ``rank`` outer products: mix, a column and a row for each, mix.

    Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition"
    (2015), by alternating least squares from the leading singular vectors.
    """
    root, inverse = _roots(basis[0])
    heavy = torch.einsum("ij,ojhw->oihw", root, weight)
    o, i, h, w = _alternating(heavy, rank)
    column, row = (each.T[:, None] for each in (h, w))
    return [
        Stage(_pointwise(i.T @ inverse, weight)),
        Stage(column[..., None], (0,), groups=rank),
        Stage(row[:, :, None], (1,), groups=rank),
        Stage(_pointwise(o, weight)),
    ]


def separately(weight: torch.Tensor, rank: int, basis: Basis) -> Stages:
    """Kernels for each input, then a mixture: depthwise separable, with ``rank`` kernels each.

    The kernels are the leading singular vectors (Guo et al., "Network Decoupling: From Regular to
    Depthwise Separable Convolutions", 2018), the mixture the best one for the inputs' covariance.
    """
    inputs = weight.shape[1]
    flat = weight.flatten(2)  # (outputs, inputs, taps)
    _, _, v = torch.linalg.svd(flat.movedim(1, 0), full_matrices=False)
    kernels = v[:, :rank]  # (inputs, rank, taps)
    wide = kernels.flatten(0, 1)
    owner = torch.arange(inputs, device=weight.device).repeat_interleave(kernels.shape[1])
    gram = basis[0][owner][:, owner] * (wide @ wide.T)
    right = torch.einsum("oit,ij,jrt->ojr", flat, basis[0], kernels).flatten(1)
    mixture = right @ torch.linalg.pinv(gram, hermitian=True)
    depthwise = wide.reshape(-1, 1, *weight.shape[2:])
    every = tuple(range(weight.dim() - 2))
    return [Stage(depthwise, every, groups=inputs), Stage(_pointwise(mixture, weight))]


Factorize = Callable[[torch.Tensor, int, Basis], Stages]

METHODS: dict[Method, Factorize] = {
    "svd": by_outputs,
    "spatial": in_space,
    "tucker": by_tucker,
    "cp": by_cp,
    "separable": separately,
}


def composed(stages: Stages) -> torch.Tensor:
    """The weight (outputs, inputs, *taps) that some stages are together."""
    total = _full(stages[0])
    for stage in stages[1:]:
        total = _after(_full(stage), total)
    return total


def products(stages: Stages) -> int:
    """Multiply-adds of all stages at each position, where none has a stride."""
    return sum(stage.weight.numel() for stage in stages)


def _full(stage: Stage) -> torch.Tensor:
    """The weight as of a layer without groups."""
    if stage.groups == 1:
        return stage.weight
    blocks = stage.weight.chunk(stage.groups)
    outputs, inputs, *taps = blocks[0].shape
    full = stage.weight.new_zeros(stage.groups, outputs, stage.groups, inputs, *taps)
    for group, block in enumerate(blocks):
        full[group, :, group] = block
    return full.flatten(2, 3).flatten(0, 1)


def _after(second: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """The kernel of one convolution after another; along each dimension one of them has one tap."""
    both: torch.Tensor = torch.einsum("om...,mi...->oi...", second, first)
    return both


def _pointwise(matrix: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return matrix.reshape(*matrix.shape, *[1] * (weight.dim() - 2))


def _leading(symmetric: torch.Tensor, count: int) -> torch.Tensor:
    """The eigenvectors of the largest eigenvalues, as columns."""
    _, vectors = torch.linalg.eigh(symmetric)
    leading: torch.Tensor = vectors[:, -count:].flip(1)
    return leading


def _roots(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The square root and its inverse, of what is kept away from zero."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=float(values.max()) * 1e-6 + 1e-30)
    return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T


def _alternating(tensor: torch.Tensor, rank: int, steps: int = 50) -> list[torch.Tensor]:
    """The four factors of a CP decomposition, each (size, rank)."""
    modes = range(tensor.dim())
    factors = [_start(tensor, mode, rank) for mode in modes]
    for _ in range(steps):
        for mode in modes:
            others = [factors[other] for other in modes if other != mode]
            gram = math.prod((each.T @ each for each in others[1:]), start=others[0].T @ others[0])
            flat = tensor.movedim(mode, 0).flatten(1)
            ridge = torch.eye(rank, dtype=gram.dtype, device=gram.device)
            held = gram + (1e-9 * gram.diagonal().mean() + 1e-30) * ridge  # of zeros, zeros
            factors[mode] = torch.linalg.solve(held, (flat @ _products_of(others)).T).T
    return factors


def _start(tensor: torch.Tensor, mode: int, rank: int) -> torch.Tensor:
    """Leading singular vectors, and chance where there are not enough."""
    flat = tensor.movedim(mode, 0).flatten(1)
    u, _, _ = torch.linalg.svd(flat, full_matrices=False)
    random = torch.Generator().manual_seed(mode)
    start = torch.randn(len(flat), rank, generator=random, dtype=tensor.dtype).to(tensor.device)
    start /= math.sqrt(len(flat))
    known = min(rank, u.shape[1])
    start[:, :known] = u[:, :known]
    return start


def _products_of(factors: list[torch.Tensor]) -> torch.Tensor:
    """The column-wise Kronecker product, of shape (product of sizes, rank)."""
    total = factors[0]
    for each in factors[1:]:
        total = (total[:, None] * each[None]).flatten(0, 1)
    return total
