"""GPTQ and AdaRound: integers chosen by what they do to outputs."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_quantize import Quantize, QuantizeDynamic
from fxopt_quantize.adaround import adaround
from fxopt_quantize.formats import signed
from fxopt_quantize.gptq import Levels, compensated, gptq
from fxopt_quantize.layers import LayerFactory
from fxopt_quantize.modules import QuantConv, QuantLinear
from fxopt_quantize.moments import InputMoments
from fxopt_quantize.weights import quantize_weight
from tests.plugins.quantize.support import CPU, modules, quantized, relative

ROUNDERS = {"gptq": gptq, "adaround": adaround}


def problem(groups=1, outputs=6, inputs=8, limit=7, samples=64):
    """Weights, scales and moments of inputs that depend on each other."""
    torch.manual_seed(0)
    weight = torch.randn(groups, outputs, inputs, dtype=torch.float64)
    mixed = torch.randn(groups, inputs, inputs, dtype=torch.float64)
    x = mixed @ torch.randn(groups, inputs, samples, dtype=torch.float64)
    scale = weight.abs().amax(2, keepdim=True) / limit
    return weight, scale, x @ x.transpose(1, 2) / samples


def cost(values, weight, scale, moments):
    error = values * scale - weight
    return float(((error @ moments) * error).sum())


def nearest(weight, scale):
    return torch.round(weight / scale)


def plain_gptq(weight, scale, moments, low, high):
    """The algorithm one column at a time, with the inverse brought up to date by elimination."""
    weight = weight.clone()
    diagonal = moments.diagonal()
    inverse = torch.linalg.inv(moments + 0.01 * diagonal.mean() * torch.eye(len(moments)).double())
    values = torch.empty_like(weight)
    for j in range(weight.shape[1]):
        values[:, j] = torch.round(weight[:, j] / scale[:, j]).clamp(low[:, j], high[:, j])
        error = (weight[:, j] - values[:, j] * scale[:, j]) / inverse[j, j]
        weight -= error[:, None] * inverse[j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return values


def test_gptq_is_the_papers_algorithm_also_over_several_blocks():
    weight, scale, moments = problem(groups=2, outputs=5, inputs=300, samples=900)
    values = gptq(weight, scale, moments, 7)
    for group in range(2):
        bound = torch.full_like(weight[group], 7)
        steps = scale[group].expand_as(bound)
        expected = plain_gptq(weight[group], steps, moments[group], -bound, bound)
        assert (values[group] != expected).float().mean() < 1e-3  # ties of rounding


def test_gptq_keeps_levels_that_differ_from_weight_to_weight():
    weight, scale, moments = problem(outputs=5, inputs=200, samples=600)
    steps = scale * (0.5 + torch.rand_like(weight))
    low, high = -torch.randint(3, 9, weight.shape).double(), torch.randint(3, 9, weight.shape)
    values = compensated(weight, Levels(steps, low, high), moments)
    assert (values >= low).all()
    assert (values <= high).all()
    expected = plain_gptq(weight[0], steps[0], moments[0], low[0], high[0].double())
    assert (values[0] != expected).float().mean() < 1e-3


@pytest.mark.parametrize("name", ROUNDERS)
def test_outputs_err_less_than_with_the_nearest_integers(name):
    weight, scale, moments = problem(groups=3, outputs=16, inputs=24)
    values = ROUNDERS[name](weight, scale, moments, 7)
    assert torch.equal(values, values.round())
    assert values.abs().max() <= 7
    plain = cost(nearest(weight, scale), weight, scale, moments)
    assert cost(values, weight, scale, moments) < 0.6 * plain


@pytest.mark.parametrize("name", ROUNDERS)
def test_inputs_that_are_independent_get_the_nearest_integers(name):
    weight, scale, _ = problem()
    moments = torch.diag_embed(torch.rand(1, 8, dtype=torch.float64) + 0.5)
    assert torch.equal(ROUNDERS[name](weight, scale, moments, 7), nearest(weight, scale))


def test_adaround_comes_close_to_the_best_of_all_choices():
    weight, scale, moments = problem(outputs=4, inputs=8)
    below = (weight / scale).floor()
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)), dtype=torch.float64)
    errors = (below[0, :, None] + choices) * scale[0, :, None] - weight[0, :, None]
    best = float((errors @ moments[0] * errors).sum(2).min(1).values.sum())
    found = cost(adaround(weight, scale, moments, 7), weight, scale, moments)
    plain = cost(nearest(weight, scale), weight, scale, moments)
    assert found - best < 0.25 * (plain - best)


def test_adaround_makes_up_for_what_is_cut_off():
    weight = torch.tensor([[[10.4, 0.45]]], dtype=torch.float64)
    scale, moments = torch.ones(1, 1, 1).double(), torch.ones(1, 2, 2).double()
    assert torch.equal(adaround(weight, scale, moments, 7)[0, 0], torch.tensor([7.0, 1.0]).double())


def test_adaround_comes_close_to_the_best_of_all_choices_where_much_is_cut_off():
    weight, scale, moments = problem(outputs=4, inputs=8, limit=7)
    limit = 3
    below = (weight / scale).floor()
    assert ((below < -limit) | (below >= limit)).float().mean() > 0.2
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)), dtype=torch.float64)
    values = (below[0, :, None] + choices).clamp(-limit, limit)
    errors = values * scale[0, :, None] - weight[0, :, None]
    best = float((errors @ moments[0] * errors).sum(2).min(1).values.sum())
    found = cost(adaround(weight, scale, moments, limit), weight, scale, moments)
    plain = cost(nearest(weight, scale).clamp(-limit, limit), weight, scale, moments)
    assert found - best < 0.25 * (plain - best)


@pytest.mark.parametrize("name", ROUNDERS)
def test_inputs_that_are_always_zero_do_no_harm(name):
    weight, scale, moments = problem()
    moments[:, 3] = moments[:, :, 3] = 0
    values = ROUNDERS[name](weight, scale, moments, 7)
    assert torch.isfinite(values).all()
    assert torch.isfinite(ROUNDERS[name](weight, scale, torch.zeros_like(moments), 7)).all()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (7, 6)),
        (nn.Linear(6, 5), (2, 7, 6)),
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 11)),
        (nn.Conv2d(4, 6, (3, 2), dilation=(1, 2), groups=2), (2, 4, 9, 8)),
        (nn.Conv2d(4, 8, 3, groups=4, padding="same"), (2, 4, 9, 8)),
        (nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), (2, 4, 9, 8)),
        (nn.Conv2d(4, 8, 3), (4, 9, 8)),
        (nn.Conv3d(2, 4, 2, padding=1), (2, 2, 5, 5, 5)),
    ],
)
def test_moments_are_those_of_what_outputs_are_products_with(layer, shape):
    torch.manual_seed(0)
    layer, x = layer.double().eval(), torch.randn(*shape, dtype=torch.float64)
    program = capture_program(layer, (x,), {})
    (node,) = program.find(type(layer))
    quant = LayerFactory().quantized(layer)
    watch = InputMoments({node: quant}, {node: nn.Identity()})
    watch(node, [x], None)
    (found,) = watch.found({node: layer.weight})
    error = torch.randn_like(found.weight)
    with torch.no_grad():
        layer.weight.copy_(error.reshape(layer.weight.shape))
        layer.bias.zero_()
        output = layer(x)
    channel = -1 if isinstance(layer, nn.Linear) or output.dim() == layer.weight.dim() - 1 else 1
    channel = 0 if shape == (4, 9, 8) else channel
    expected = output.movedim(channel, 0).flatten(1).square().mean(1).sum()
    torch.testing.assert_close(((error @ found.moments) * error).sum(), expected)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, groups=12)
        self.twice, self.head = nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = self.depthwise(self.conv(x).relu()).relu().mean((2, 3))
        return self.head(self.twice(self.twice(x).relu()).relu())


@pytest.mark.parametrize("rounding", ROUNDERS)
def test_coarse_weights_cost_less_when_rounded_well(rounding):
    torch.manual_seed(0)
    model, x = Small().eval(), torch.randn(64, 3, 10, 10)
    plain, _ = quantized(model, (x,), weight_bits=4)
    program, result = quantized(model, (x,), weight_bits=4, rounding=rounding)
    assert f"4-bit weights by {rounding}" in result.summary
    for layer in [*modules(program, QuantConv), *modules(program, QuantLinear)]:
        assert layer.weight_values.abs().max() <= 7
    assert len({id(layer) for layer in modules(program, QuantLinear)}) == 2
    errors = [relative(each(x)[0], model(x)) for each in (plain, program)]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(
    ("features", "largest"),
    [
        (("avx2",), 63),
        (("avx2", "avx512f"), 63),
        (("avx2", "avx512f", "avx512_vnni"), 127),
        (("avx2", "avx_vnni"), 127),
        ((), 127),  # not an x86
    ],
)
@pytest.mark.parametrize("dynamic", [False, True])
def test_weights_have_a_bit_less_where_kernels_would_overflow(features, largest, dynamic):
    torch.manual_seed(0)
    x = torch.randn(8, 3, 10, 10)
    program = capture_program(Small().eval(), (x,), {}).clone()
    calibration = Calibration([x], program.signature)
    context = Context(replace(CPU, features=features), calibration=calibration)
    (QuantizeDynamic() if dynamic else Quantize()).run(program, context)
    layers = [*modules(program, QuantConv), *modules(program, QuantLinear)]
    assert layers
    assert {int(layer.weight_values.abs().max()) for layer in layers} == {largest}


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="between 2 and 8"):
        quantized(Small(), (torch.randn(2, 3, 10, 10),), weight_bits=bits)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_range_of_few_levels_is_the_one_of_least_error(bits):
    """Beside an exhaustive search in NumPy."""
    torch.manual_seed(0)
    weight = torch.randn(5, 400, dtype=torch.float64)
    weight[2] = 0
    weight[3, 7] = 40.0
    limit = 2 ** (bits - 1) - 1
    found = quantize_weight(weight, number=signed(bits))
    for row, values, scale in zip(weight.numpy(), found.values, found.scale, strict=True):
        error = np.square(values.numpy() * float(scale) - row).sum()
        largest = np.abs(row).max() or 1.0
        shares = [1.0] if bits == 8 else np.linspace(1 / 3, 1, 400)
        tried = [
            np.square(np.clip(np.rint(row / s), -limit, limit) * s - row).sum()
            for s in (share * largest / limit for share in shares)
        ]
        assert error <= 1.02 * min(tried)
    assert not found.values[2].any()
