"""Operations on the space behind the channels: pooling, resizing."""

from __future__ import annotations

import torch
from torch import nn

from fxopt_prune.channels.atoms import fixed
from fxopt_prune.channels.rules.registry import rule
from fxopt_prune.channels.trace import Call, Dims, Value

aten = torch.ops.aten


def _of_space(call: Call, rank: int) -> Dims:
    """The last dimensions change; those before them stay as they were."""
    x = call.first()
    for labels in x[-rank:]:
        call.fix(labels, "neighbours in space")
    return (*x[:-rank], *(fixed(size) for size in call.sizes[-rank:]))


@rule(
    aten.avg_pool1d.default, aten.max_pool1d.default, aten.adaptive_avg_pool1d.default,
    aten.upsample_nearest1d.vec, aten.upsample_linear1d.vec,
)  # fmt: skip
def in_one_dimension(call: Call) -> Dims:
    """On sequences."""
    return _of_space(call, 1)


@rule(
    aten.avg_pool2d.default, aten.max_pool2d.default, aten.adaptive_avg_pool2d.default,
    aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec,
    aten.upsample_nearest2d.default, aten.upsample_bilinear2d.default,
    aten.upsample_bicubic2d.default, aten._upsample_nearest_exact2d.vec,
    aten._upsample_bilinear2d_aa.vec,
)  # fmt: skip
def in_two_dimensions(call: Call) -> Dims:
    """On images."""
    return _of_space(call, 2)


@rule(
    aten.avg_pool3d.default, aten.max_pool3d.default, aten.adaptive_avg_pool3d.default,
    aten.upsample_nearest3d.vec, aten.upsample_trilinear3d.vec,
)  # fmt: skip
def in_three_dimensions(call: Call) -> Dims:
    """On videos."""
    return _of_space(call, 3)


@rule(
    aten.adaptive_max_pool2d.default, aten.max_pool2d_with_indices.default,
)  # fmt: skip
def with_numbers(call: Call) -> Value:
    """Pooling that tells where its results come from."""
    values = call.node.meta["val"]
    x = call.first()
    for labels in x[-2:]:
        call.fix(labels, "neighbours in space")
    return [(*x[:-2], *(fixed(int(size)) for size in value.shape[-2:])) for value in values]


@rule(aten.grid_sampler.default)
def grid_sample(call: Call) -> Dims:
    """Looked up at coordinates, alike for all channels."""
    for labels in call.dims(call.arguments["grid"]):
        call.fix(labels, "coordinates")
    x = call.first()
    rank = len(x) - 2
    for labels in x[-rank:]:
        call.fix(labels, "neighbours in space")
    return (*x[:2], *(fixed(size) for size in call.sizes[2:]))


@rule(
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.ZeroPad2d,
)  # fmt: skip
def pooling_module(call: Call) -> Dims:
    """The same as modules."""
    return _of_space(call, int(type(call.leaf).__name__[-2]))
