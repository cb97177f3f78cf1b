"""SmoothQuant."""

import pytest
import torch
from torch import nn

from fxopt.frontend import capture_program
from fxopt.passes import Calibration
from fxopt_quantize.calibrate import observe
from fxopt_quantize.smooth import Smoother
from tests.building import aten
from tests.plugins.quantize.support import quantized, relative


class NormedLayers(nn.Module):
    """Two layer norms: one before two linear layers, one whose output is used otherwise, too.

    In both, a channel is 60 times as large as the others.
    """

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.left, self.right, self.last = (nn.Linear(16, 16) for _ in range(3))
        with torch.no_grad():
            self.first.weight[3] = 60.0
            self.second.weight[5] = 60.0

    def forward(self, x):
        x = self.first(x)
        x = self.left(x) * self.right(x).sigmoid()
        x = self.second(x)
        return x + self.last(x)


def test_smoothing_moves_outliers_to_the_weights_and_keeps_the_numbers():
    torch.manual_seed(0)
    model, x = NormedLayers().double().eval(), torch.randn(8, 5, 16, dtype=torch.float64)
    program = capture_program(model, (x,), {}).clone()
    layers = [node for node in program.nodes if str(node.target) in ("left", "right", "last")]
    smoother = Smoother(program, layers)
    assert len(smoother) == 2
    observe(program, Calibration([x], program.signature), smoother, samples=8,
            progress=lambda line: None, task="smoothing", remedy=str)  # fmt: skip
    smoother.smooth(0.5)
    torch.testing.assert_close(program(x)[0], model(x), rtol=1e-12, atol=1e-12)
    parts = dict(program.module.named_modules())
    seen = model.first(x).abs().flatten(0, 1).amax(0)
    columns = torch.maximum(model.left.weight.abs().amax(0), model.right.weight.abs().amax(0))
    factors = (seen / columns).sqrt()  # equation 4, with alpha = 0.5
    torch.testing.assert_close(parts["first"].weight, model.first.weight / factors)
    torch.testing.assert_close(parts["left"].weight, model.left.weight * factors)
    assert torch.equal(parts["second"].weight, model.second.weight)
    (product,) = [node for node in program.find(aten.mul.Tensor) if node.args[1].op == "get_attr"]
    (last,) = product.users
    assert last.target == "last"
    seen = model.second(model.left(model.first(x)) * model.right(model.first(x)).sigmoid())
    factors = (seen.abs().flatten(0, 1).amax(0) / model.last.weight.abs().amax(0)).sqrt()
    torch.testing.assert_close(program.tensor(product.args[1]), 1 / factors)


def test_smoothing_helps_where_there_are_outliers():
    torch.manual_seed(0)
    model, x = NormedLayers().eval(), torch.randn(8, 5, 16)
    plain, fixed, chosen = (
        relative(quantized(model, (x,), smoothing=strength)[0](x)[0], model(x))
        for strength in (0.0, 0.5, "auto")
    )
    assert fixed < 0.7 * plain
    assert chosen < 0.7 * plain


@pytest.mark.parametrize("quiet", [1e-4, 0.0])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("strength", [0.5, 1.0, "auto"])
def test_a_channel_that_calibration_saw_silent_may_be_louder(strength, scale, quiet):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)).eval(), torch.randn(64, 16)
    program = capture_program(model, (x,), {}).clone()
    smoother = Smoother(program, list(program.find(nn.Linear)))
    x *= scale
    x[:, 3] *= 60.0
    x[:, 5] *= quiet
    (node,) = program.find(nn.LayerNorm)
    smoother(node, [], x)
    smoother.smooth(strength)
    factors = model[0].weight / program.leaf(node).weight
    common = (x.abs().amax(0) / factors).max()
    assert common * factors[5] > 0.05 * scale  # what the channel may reach elsewhere
    if strength == 1.0:  # all others get one range, be it an outlier or not
        others = (x.abs().amax(0) / factors)[[i for i in range(16) if i != 5]]
        torch.testing.assert_close(others, common.expand(15))


def test_a_product_that_would_spare_little_is_not_made():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)), torch.randn(64, 16)
    program, _ = quantized(model, (x,), smoothing="auto")
    assert not list(program.find(aten.mul.Tensor))
    forced, _ = quantized(model, (x,), smoothing=0.5)
    assert len(list(forced.find(aten.mul.Tensor))) == 2
    torch.testing.assert_close(forced(x)[0], model(x), rtol=0.1, atol=0.02)


@pytest.mark.parametrize("limit", range(5))
def test_a_rewrite_limit_leaves_the_numbers_right(limit):
    torch.manual_seed(0)
    model, x = NormedLayers().double().eval(), torch.randn(8, 5, 16, dtype=torch.float64)
    program = capture_program(model, (x,), {}).clone()
    program.rewrite_limit = limit
    smoother = Smoother(program, list(program.find(nn.Linear)))
    observe(program, Calibration([x], program.signature), smoother, samples=8,
            progress=lambda line: None, task="smoothing", remedy=str)  # fmt: skip
    smoother.smooth(0.5)
    torch.testing.assert_close(program(x)[0], model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tied", [True, False])
def test_layers_that_share_weights_are_not_smoothed(tied):
    model = NormedLayers()
    if tied:
        model.left.weight = model.last.weight
    program = capture_program(model, (torch.randn(2, 5, 16),), {}).clone()
    layers = [node for node in program.nodes if str(node.target) in ("left", "right", "last")]
    assert len(Smoother(program, layers)) == (1 if tied else 2)
