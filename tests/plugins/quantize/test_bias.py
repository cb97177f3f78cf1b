"""Bias correction."""

import copy

import pytest
import torch
from torch import nn

from fxopt_quantize import QuantConv
from tests.plugins.quantize.support import modules, quantized, relative


def channel_means(y, channel):
    channels = y.detach().double().movedim(channel, 0)
    return channels.reshape(len(channels), -1).mean(1)


LAYERS = {
    "conv": (lambda: nn.Conv2d(8, 6, 3, stride=2, padding=1), (5, 8, 9, 9), 1),
    "no bias": (lambda: nn.Conv2d(8, 6, 3, bias=False), (5, 8, 9, 9), 1),
    "depthwise": (lambda: nn.Conv2d(8, 8, 3, groups=8), (5, 8, 9, 9), 1),
    "transposed": (lambda: nn.ConvTranspose2d(8, 6, 3), (5, 8, 9, 9), 1),
    "linear": (lambda: nn.Linear(16, 6), (5, 7, 16), -1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_bias_correction_keeps_the_mean_of_every_channel(name):
    torch.manual_seed(0)
    make, shape, channel = LAYERS[name]
    layer, batches = make(), [torch.rand(shape) ** 3 + 0.2, torch.rand(3, *shape[1:])]
    before = copy.deepcopy(layer.state_dict())
    plain, _ = quantized(layer, *[(x,) for x in batches], bias_correction=False)
    program, _ = quantized(layer, *[(x,) for x in batches])
    everything = torch.cat(batches)
    wanted = channel_means(layer(everything), channel)
    shift = (channel_means(plain(everything)[0], channel) - wanted).abs().max()
    left = (channel_means(program(everything)[0], channel) - wanted).abs().max()
    assert left < 1e-6
    assert shift > 100 * left
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 8, 3), (4, 9, 8)),
        (nn.Conv2d(1, 8, 3, padding=1), (1, 8, 8)),  # as many rows as channels
        (nn.ConvTranspose1d(4, 6, 3), (4, 9)),
        (nn.Linear(16, 6), (16,)),
    ],
    ids=["conv", "square", "transposed", "linear"],
)
def test_the_mean_is_kept_without_a_batch(layer, shape):
    torch.manual_seed(0)
    x, channel = torch.rand(shape) ** 3 + 0.2, -1 if len(shape) == 1 else 0
    plain, _ = quantized(layer, (x,), bias_correction=False)
    program, _ = quantized(layer, (x,))
    wanted = channel_means(layer(x), channel)
    shift = (channel_means(plain(x)[0], channel) - wanted).abs().max()
    left = (channel_means(program(x)[0], channel) - wanted).abs().max()
    assert shift > 100 * left


def test_bias_correction_where_rounding_comes_before_the_pooling_and_layers_are_shared():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.conv = nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(self.pool(x)).relu())

    torch.manual_seed(0)
    model, x = Net(), torch.rand(8, 4, 12, 12)
    program, _ = quantized(model, (x,), bias_correction=True)
    (layer,) = {id(m): m for m in modules(program, QuantConv)}.values()
    assert not torch.equal(layer.bias, model.conv.bias)
    assert relative(program(x)[0], model(x)) < 0.02


def test_bias_correction_helps_a_net_whose_errors_add_up():
    torch.manual_seed(0)
    layers = [m for _ in range(8) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), torch.rand(16, 16, 10, 10)
    errors = [
        relative(quantized(model, (x,), bias_correction=on)[0](x)[0], model(x))
        for on in (False, True)
    ]
    assert errors[1] < 0.7 * errors[0]
