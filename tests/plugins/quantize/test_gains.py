"""Layers that are not worth rounding."""

import pytest
import torch
from torch import nn

from fxopt.errors import SettingError
from fxopt.frontend import capture_program
from fxopt.passes import parse_passes
from fxopt_quantize import QuantConv, Quantize, QuantLinear
from fxopt_quantize.gains import worthless
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


def floats(model, x, least):
    """The linear layers that stay in float."""
    program = capture_program(model.eval(), (x,), {})
    found = worthless(program, list(program.find(nn.Linear)), least)
    return [str(node.target) for node in found]


def test_many_small_layers_are_judged_by_their_sum():
    layers = [m for _ in range(250) for m in (nn.LayerNorm(4), nn.Linear(4, 4))]
    assert floats(nn.Sequential(*layers), torch.randn(2, 4), least=0.005) == []  # 0.4 % each


def test_the_smallest_stay_in_float_as_far_as_their_sum_allows():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 48))
            self.heads = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(48), nn.Linear(48, width)) for width in (4, 2, 3, 2)
            )

        def forward(self, x):
            x = self.block(x)[:, 0]
            return tuple(head(x) for head in self.heads)

    model = Heads()
    shares = [sum(4 * 48 * w + 7 * (4 * 48 + 48 * w + 4 * w) for w in widths)
              for widths in ([2, 2], [2, 2, 3], [2, 2, 3, 4])]  # fmt: skip
    block = 2 * (4 * 32 * 48 * 48 + 7 * (2 * 4 * 32 * 48 + 48 * 48))
    two, three, four = (share / (block + shares[-1]) for share in shares)
    heads = [f"heads.{index}.1" for index in range(4)]
    assert floats(model, TOKENS, least=two * 0.99) == []  # those of one size stand together
    assert floats(model, TOKENS, least=two * 1.01) == [heads[1], heads[3]]
    assert floats(model, TOKENS, least=three * 1.01) == heads[1:]
    assert floats(model, TOKENS, least=four * 1.01) == heads


def test_the_share_is_checked_and_can_be_written():
    (given,) = parse_passes("quantize{least_saving=0.02}", KNOWN)
    assert given == Quantize(least_saving=0.02)
    with pytest.raises(SettingError, match="least_saving"):
        parse_passes("quantize{least_saving=1.5}", KNOWN)
