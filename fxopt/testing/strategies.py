"""Hypothesis strategies: small random models, in float64, with example inputs.

For property tests of passes::

    @given(generated_cases())
    def test_my_pass(case):
        program, result = run_pass(MyPass(), case)
        assert worst_error(case, program) <= 1e-9
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn

from fxopt.testing import blocks
from fxopt.testing.cases import Case, make_case
from fxopt.testing.reference import randomize

Draw = st.DrawFn
Block = tuple[nn.Module, int, int]
"""A module, and the channels and the side length that it yields."""

_ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU,
    nn.Hardswish,
    nn.GELU,
    nn.Sigmoid,
    # not on the model's own input, which a model must not change
    lambda: nn.Sequential(nn.Tanh(), nn.ReLU(inplace=True)),
    lambda: nn.LeakyReLU(0.1),
)
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@st.composite
def generated_cases(draw: Draw, max_blocks: int = 4) -> Case:
    """Captured random models with inputs at two batch sizes."""
    seed = draw(st.integers(0, 2**16), label="seed")
    model, channels, side = draw(models(max_blocks))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = torch.randn(2, channels, side, side, dtype=torch.float64)
        return make_case("generated", randomize(model.double()).eval(), x)


@st.composite
def models(draw: Draw, max_blocks: int = 4) -> tuple[nn.Module, int, int]:
    """Random models, with the channels and the side length of the images that they take."""
    channels = entry = draw(st.sampled_from((2, 4, 6)), label="channels")
    side = first = draw(st.sampled_from((4, 6)), label="side")
    trunk = nn.Sequential()
    for _ in range(draw(st.integers(1, max_blocks), label="blocks")):
        module, channels, side = draw(_blocks(channels, side))
        trunk.append(module)
    head, both = draw(_heads(channels, side)), draw(st.booleans(), label="both outputs")
    return blocks.Outputs(trunk, head, both), entry, first


def batch_norm(draw: Draw, channels: int, dims: int = 2) -> nn.Module:
    """A batch norm with random settings."""
    cls = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[dims]
    affine = draw(st.booleans(), label="affine")
    tracked = draw(st.integers(0, 7), label="tracked") > 0  # rarely not
    eps = draw(st.sampled_from((1e-5, 1e-3, 0.1)), label="eps")
    return cls(channels, eps=eps, affine=affine, track_running_stats=tracked)


def same_conv(draw: Draw, channels: int, side: int) -> nn.Module:
    """A convolution that keeps channels and side."""
    kernel = draw(st.sampled_from((1, 3)), label="kernel")
    mode: Any = (
        "zeros" if kernel == 1 or side == 1 else draw(st.sampled_from(_PADDING_MODES), label="mode")
    )
    groups = draw(st.sampled_from((1, 2, channels)), label="groups")
    padding: Any = draw(st.sampled_from((kernel // 2, "same")), label="padding")
    bias = draw(st.booleans(), label="bias")
    return nn.Conv2d(
        channels, channels, kernel, padding=padding, groups=groups, bias=bias, padding_mode=mode
    )


def _conv(draw: Draw, channels: int, side: int) -> Block:
    out = draw(st.sampled_from((2, 4, 6)), label="out channels")
    kernel = draw(st.sampled_from([k for k in (1, 2, 3) if k <= side]), label="kernel")
    stride = draw(st.sampled_from((1, 2)), label="stride")
    padding = draw(st.sampled_from((0, kernel // 2)), label="padding")
    groups = 2 if draw(st.booleans(), label="grouped") else 1
    bias = draw(st.booleans(), label="bias")
    conv = nn.Conv2d(channels, out, kernel, stride, padding, groups=groups, bias=bias)
    return conv, out, (side + 2 * padding - kernel) // stride + 1


def _transposed(draw: Draw, channels: int, side: int) -> Block:
    out = draw(st.sampled_from((2, 4)), label="out channels")
    kernel, stride = draw(st.sampled_from(((1, 1), (2, 2), (3, 1))), label="kernel, stride")
    groups = 2 if draw(st.booleans(), label="grouped") else 1
    conv = nn.ConvTranspose2d(
        channels, out, kernel, stride, groups=groups, bias=draw(st.booleans(), label="bias")
    )
    return conv, out, (side - 1) * stride + kernel


def _normed(draw: Draw, channels: int, side: int) -> Block:
    """A convolution with a batch norm before, after or both, perhaps an activation between."""
    make = _transposed if draw(st.booleans(), label="transposed") and side <= 6 else _conv
    layer, out, new_side = make(draw, channels, side)
    parts = [layer]
    order = draw(st.sampled_from(("after", "before", "both", "twice", "apart")), label="order")
    if order in ("before", "both"):
        parts.insert(0, batch_norm(draw, channels))
    if order in ("after", "both", "twice"):
        parts.append(batch_norm(draw, out))
    if order == "twice":
        parts.append(batch_norm(draw, out))
    if order == "apart":
        parts += [_activation(draw), batch_norm(draw, out)]
    return nn.Sequential(*parts), out, new_side


def _activation(draw: Draw) -> nn.Module:
    return draw(st.sampled_from(_ACTIVATIONS), label="activation")()


def _same_body(draw: Draw, channels: int, side: int) -> nn.Module:
    return nn.Sequential(same_conv(draw, channels, side), batch_norm(draw, channels))


def _residual(draw: Draw, channels: int, side: int) -> Block:
    return blocks.Residual(_same_body(draw, channels, side)), channels, side


def _concat(draw: Draw, channels: int, side: int) -> Block:
    first, second = _same_body(draw, channels, side), same_conv(draw, channels, side)
    joined = nn.Sequential(blocks.Concat(first, second), nn.Conv2d(2 * channels, channels, 1))
    return joined, channels, side


def _half(draw: Draw, channels: int, side: int) -> Block:
    return blocks.HalfTouched(nn.Conv2d(channels // 2, channels // 2, 1)), channels, side


def _twice(draw: Draw, channels: int, side: int) -> Block:
    norms = [batch_norm(draw, channels) for _ in range(draw(st.integers(0, 2), label="norms"))]
    return blocks.Twice(same_conv(draw, channels, side), *norms), channels, side


def _fork(draw: Draw, channels: int, side: int) -> Block:
    return blocks.Fork(same_conv(draw, channels, side), batch_norm(draw, channels)), channels, side


def _pool(draw: Draw, channels: int, side: int) -> Block:
    if side < 4:
        return nn.AdaptiveAvgPool2d(side), channels, side
    cls = draw(st.sampled_from((nn.MaxPool2d, nn.AvgPool2d)), label="pool")
    return cls(2), channels, side // 2


def _simple(draw: Draw, channels: int, side: int) -> Block:
    """A block that keeps the shape and needs no more than the number of channels."""
    makers: tuple[Callable[[], nn.Module], ...] = (
        lambda: _activation(draw),
        lambda: nn.Dropout(0.5),
        lambda: nn.Dropout2d(0.5),
        lambda: batch_norm(draw, channels),
        lambda: blocks.Shuffle(),
        lambda: blocks.ChannelsLastNorm(channels),
        lambda: blocks.Ramp(channels),
        lambda: blocks.Repeats(nn.Conv2d(channels, channels, 1)),
    )
    return draw(st.sampled_from(makers), label="simple block")(), channels, side


def _no_ops(draw: Draw, channels: int, side: int) -> Block:
    names = st.lists(st.sampled_from(sorted(blocks.NO_OPS)), min_size=1, max_size=4)
    return blocks.NoOps(*draw(names, label="no-ops")), channels, side


_MAKERS = (_conv, _normed, _normed, _residual, _concat, _half, _twice, _fork, _pool, _simple,
           _no_ops)  # fmt: skip


@st.composite
def _blocks(draw: Draw, channels: int, side: int) -> Block:
    return draw(st.sampled_from(_MAKERS), label="kind")(draw, channels, side)


@st.composite
def _heads(draw: Draw, channels: int, side: int) -> nn.Module:
    kind = draw(st.sampled_from(("none", "pooled", "flat")), label="head")
    if kind == "none":
        return nn.Identity()
    features = channels if kind == "pooled" else channels * side * side
    pool = nn.AdaptiveAvgPool2d(1) if kind == "pooled" else nn.Identity()
    linear = nn.Linear(features, 5, bias=draw(st.booleans(), label="bias"))
    tail = draw(st.sampled_from(("nothing", "norm after", "norm before", "layer norm")))
    if tail == "norm before":
        return nn.Sequential(pool, nn.Flatten(), batch_norm(draw, features, 1), linear)
    if tail == "norm after":
        return nn.Sequential(pool, nn.Flatten(), linear, batch_norm(draw, 5, 1))
    end = nn.LayerNorm(5) if tail == "layer norm" else nn.Identity()
    return nn.Sequential(pool, nn.Flatten(), linear, end)
