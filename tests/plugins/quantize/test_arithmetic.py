"""The arithmetic of quantized layers, against integers by NumPy."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt_quantize import FakeQuantize, QuantConv, QuantLinear
from fxopt_quantize.formats import signed
from fxopt_quantize.modules import QuantLayer
from fxopt_quantize.ranges import grid_for
from fxopt_quantize.weights import quantize_weight
from tests.plugins.quantize.support import modules, quantized, relative


def integers(x, grid):
    """uint8 values of a tensor, by NumPy."""
    return np.clip(np.rint(x.numpy() / np.float32(grid.scale)) + grid.zero_point, 0, 255).astype(
        int
    )


def integer_conv(x, w, stride, padding, groups, zero_point):
    """A convolution of integers, loop by loop; padding is real zeros."""
    x = np.pad(x - zero_point, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out_channels, in_group, kh, kw = w.shape
    height, width = (
        (size - k) // stride + 1 for size, k in zip(x.shape[2:], (kh, kw), strict=True)
    )
    result = np.zeros((x.shape[0], out_channels, height, width), dtype=np.int64)
    for o, i, j in itertools.product(range(out_channels), range(height), range(width)):
        first = o // (out_channels // groups) * in_group
        rows = slice(i * stride, i * stride + kh)
        columns = slice(j * stride, j * stride + kw)
        result[:, o, i, j] = (x[:, first : first + in_group, rows, columns] * w[o]).sum((1, 2, 3))
    return result


@settings(max_examples=25, deadline=None)
@given(
    channels=st.sampled_from([(1, 2, 1), (3, 4, 1), (4, 4, 2), (4, 8, 4)]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    seed=st.integers(0, 1000),
)
def test_a_convolution_gives_what_integers_give(channels, kernel, stride, padding, seed):
    torch.manual_seed(seed)
    inputs, outputs, groups = channels
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
    x = torch.randn(2, inputs, 6, 5) + 0.5
    grid = grid_for(float(x.min()) * 0.9, float(x.max()) * 0.9)
    weight = quantize_weight(conv.weight)
    layer = QuantConv(conv, weight)
    got = layer(FakeQuantize(grid.scale, grid.zero_point)(x))
    sums = integer_conv(
        integers(x, grid),
        weight.values.numpy().astype(int),
        stride,
        padding,
        groups,
        grid.zero_point,
    )
    scales = weight.scale.reshape(1, -1, 1, 1).double().numpy() * grid.scale
    expected = sums * scales + conv.bias.detach().double().reshape(1, -1, 1, 1).numpy()
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 1000))
def test_a_linear_layer_gives_what_integers_give(sizes, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(*sizes)
    x = torch.randn(3, sizes[0])
    grid = grid_for(float(x.min()), float(x.max()))
    weight = quantize_weight(linear.weight)
    got = QuantLinear(weight, linear.bias)(FakeQuantize(grid.scale, grid.zero_point)(x))
    sums = (integers(x, grid) - grid.zero_point) @ weight.values.numpy().astype(int).T
    scales = weight.scale.reshape(1, -1).double().numpy() * grid.scale
    expected = sums * scales + linear.bias.detach().double().numpy()
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_weights_use_a_symmetric_grid_and_survive_dead_channels():
    weight = torch.tensor([[1.0, -2.0], [0.0, 0.0], [1e-42, 0.0], [3.0, 3.0]])
    rounded = quantize_weight(weight)
    assert rounded.values.dtype == torch.int8
    assert rounded.values.abs().max() == 127
    torch.testing.assert_close(rounded.values * rounded.scale, weight, rtol=0, atol=2 / 127 / 2)
    assert rounded.scale.flatten()[1] == 1
    assert torch.equal(quantize_weight(-weight).values, -rounded.values)


@pytest.mark.parametrize("bits", [8, 4])
def test_one_scale_for_a_whole_weight(bits):
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3) * torch.logspace(-2, 0, 6).reshape(-1, 1, 1)
    whole = quantize_weight(weight, None, signed(bits))
    flat = quantize_weight(weight.reshape(1, -1), 0, signed(bits))
    assert whole.scale.shape == (1, 1, 1)
    assert float(whole.scale) == float(flat.scale)
    expected = np.rint(weight.numpy() / float(whole.scale)).clip(-(2 ** (bits - 1)) + 1, None)
    np.testing.assert_array_equal(whole.values.numpy(), expected.clip(None, 2 ** (bits - 1) - 1))


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_program_with_one_scale_for_each_weight(rounding):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 3),
        nn.Flatten(),
        nn.Linear(6 * 64, 5),
    )
    with torch.no_grad():  # channels that differ
        model[0].weight *= torch.logspace(-2, 0, 8)[:, None, None, None]
        model[2].weight *= torch.logspace(-2, 0, 6)[:, None, None]
        model[4].weight *= torch.logspace(-2, 0, 5)[:, None]
    x = torch.randn(64, 4, 8, 8)
    options = {"rounding": rounding, "least_saving": 0.0}
    program, result = quantized(model, (x,), weights="tensor", **options)
    layers = modules(program, QuantLayer)
    assert [layer.weight_scale.numel() for layer in layers] == [1, 1, 1]
    assert ", per tensor, " in result.summary
    per_channel, _ = quantized(model, (x,), **options)
    error = relative(program(x)[0], model(x))
    assert relative(per_channel(x)[0], model(x)) < 0.9 * error < 0.01


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_convolutions_of_every_dimension_keep_their_geometry(dims, mode):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    torch.manual_seed(0)
    conv = kind(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, padding_mode=mode)
    x = torch.randn(2, 4, *[9] * dims)
    program, result = quantized(conv, (x,))
    assert result.details["layers"] == 1
    assert relative(program(x)[0], conv(x)) < 0.02


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolutions(dims):
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    torch.manual_seed(0)
    conv = kind(4, 6, 3, stride=2, padding=1, output_padding=1)
    x = torch.randn(2, 4, *[5] * dims)
    program, result = quantized(conv, (x,))
    assert result.details["layers"] == 1
    assert relative(program(x)[0], conv(x)) < 0.02
