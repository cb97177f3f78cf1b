"""SmoothQuant."""

import pytest
import torch
from torch import nn

from fxopt.frontend import capture_program
from fxopt.passes import Calibration
from fxopt_quantize.calibrate import observe
from fxopt_quantize.smooth import Smoother
from tests.plugins.quantize.support import quantized, relative


class NormedLayers(nn.Module):
    """Two layer norms: one before two linear layers, one whose output is used otherwise, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.left, self.right, self.last = (nn.Linear(16, 16) for _ in range(3))
        with torch.no_grad():
            self.first.weight[3] = 60.0  # the outlier
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
    assert len(smoother) == 1
    observe(program, Calibration([x], program.signature), smoother, samples=8,
            progress=lambda line: None, task="smoothing")  # fmt: skip
    smoother.smooth(0.5)
    torch.testing.assert_close(program(x)[0], model(x), rtol=1e-12, atol=1e-12)
    parts = dict(program.module.named_modules())
    seen = model.first(x).abs().flatten(0, 1).amax(0)
    columns = torch.maximum(model.left.weight.abs().amax(0), model.right.weight.abs().amax(0))
    factors = (seen / columns).sqrt()  # equation 4, with alpha = 0.5
    torch.testing.assert_close(parts["first"].weight, model.first.weight / factors)
    torch.testing.assert_close(parts["left"].weight, model.left.weight * factors)
    assert torch.equal(parts["second"].weight, model.second.weight)


def test_smoothing_helps_where_there_are_outliers():
    torch.manual_seed(0)
    model, x = NormedLayers().eval(), torch.randn(8, 5, 16)
    errors = [relative(quantized(model, (x,), smoothing=s)[0](x)[0], model(x)) for s in (0.0, 0.5)]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("tied", [True, False])
def test_layers_that_share_weights_are_not_smoothed(tied):
    model = NormedLayers()
    if tied:
        model.left.weight = model.last.weight
    program = capture_program(model, (torch.randn(2, 5, 16),), {}).clone()
    layers = [node for node in program.nodes if str(node.target) in ("left", "right", "last")]
    assert len(Smoother(program, layers)) == (0 if tied else 1)
