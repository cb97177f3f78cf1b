"""Layers that are not worth rounding."""

import pytest
import torch
from torch import nn

from fxopt.errors import SettingError
from fxopt.passes import parse_passes
from fxopt_quantize import QuantConv, Quantize, QuantLinear
from tests.plugins.quantize.support import modules, quantized, relative

KNOWN = {"quantize": Quantize}
TOKENS = torch.randn(4, 32, 48, generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """A block over tokens and a classifier of the first one, behind a layer norm."""

    def __init__(self, heads=1, norm=True):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(48, 128), nn.GELU(), nn.Linear(128, 48))
        self.norm = nn.LayerNorm(48) if norm else nn.Identity()
        self.heads = nn.ModuleList(nn.Linear(48, 2) for _ in range(heads))

    def forward(self, x):
        x = self.norm(self.block(x))[:, 0]
        return tuple(head(x) for head in self.heads)


def layers_of(model, x=TOKENS, **settings):
    program, result = quantized(model, (x,), **settings)
    return program, modules(program, QuantLinear) + modules(program, QuantConv), result.refused


def test_a_small_classifier_behind_a_layer_norm_stays_in_float():
    torch.manual_seed(0)
    model = Tokens().eval()
    program, layers, refused = layers_of(model)
    assert len(layers) == 2
    assert [str(node.target) for node in program.find(nn.Linear)] == ["heads.0"]
    assert "saves less than 0.005 of the time" in refused[0]
    everything, layers, refused = layers_of(model, least_saving=0.0)
    assert len(layers) == 3
    assert not refused
    expected = model(TOKENS)[0]
    assert relative(program(TOKENS)[0], expected) < relative(everything(TOKENS)[0], expected)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (Tokens(norm=False), TOKENS),  # it takes what is in int8 already
        (Tokens(heads=2), TOKENS),  # what it takes is rounded for another layer as well
        (nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 2)), TOKENS),  # it is all there is
        (
            nn.Sequential(nn.Conv2d(8, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(64, 2, 1)),
            torch.randn(2, 8, 16, 16),
        ),
    ],
    ids=["int8", "shared", "alone", "convolution"],
)
def test_other_layers_are_quantized_however_small(model, x):
    _, _, refused = layers_of(model.eval(), x)
    assert not refused


def test_the_share_is_checked_and_can_be_written():
    (given,) = parse_passes("quantize{least_saving=0.02}", KNOWN)
    assert given == Quantize(least_saving=0.02)
    with pytest.raises(SettingError, match="least_saving"):
        parse_passes("quantize{least_saving=1.5}", KNOWN)
