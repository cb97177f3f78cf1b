"""What convolutions yield in float: its range is kept for runtimes that would round it."""

import pytest
import torch
from torch import nn

from fxopt.frontend import capture_program
from fxopt.ir.saving import load_program, save_program
from fxopt.passes import Calibration, Context
from fxopt.training import Trainer, Training
from fxopt_quantize import QuantConv
from fxopt_quantize.results import ResultRange
from tests.plugins.quantize.support import CPU, modules, quantized

X = torch.randn(4, 8, 12, generator=torch.Generator().manual_seed(0))


def bounds(*layers, x=X, **settings):
    """Of the convolutions, in order."""
    torch.manual_seed(0)
    program, _ = quantized(nn.Sequential(*layers), (x,), **settings)
    return [layer.bounds for layer in modules(program, QuantConv)]


def test_they_are_the_least_and_the_largest_of_each_channel():
    conv = nn.Conv1d(8, 6, 3)
    (found,) = bounds(conv, nn.Softplus())
    with torch.no_grad():
        y = conv(X)
    expected = torch.stack([y.amin((0, 2)).clamp(max=0), y.amax((0, 2)).clamp(min=0)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("between", [nn.Identity(), nn.ReLU(), nn.GELU(), nn.MaxPool1d(2)])
def test_what_is_rounded_anyway_has_none(between):
    found = bounds(nn.Conv1d(8, 6, 3), between, nn.Conv1d(6, 6, 3), nn.Softplus())
    assert [each is None for each in found] == [True, False]


def test_what_has_no_batch_has_none():
    assert bounds(nn.Conv1d(8, 6, 3), nn.Softplus(), x=X[0]) == [None]


def test_weights_that_are_trained_have_none():
    model = nn.Sequential(nn.Conv1d(8, 6, 3), nn.Softplus()).eval()
    calibration = Calibration([(X,)], capture_program(model, (X,), {}).signature)
    training = Trainer(Training([(X,)], loss=None, epochs=1))
    context = Context(CPU, calibration=calibration, training=training)
    program, _ = quantized(model, (X,), context=context, training="lsq")
    assert [layer.bounds for layer in modules(program, QuantConv)] == [None]


def test_what_is_not_finite_is_no_error_where_nothing_has_to_be_rounded():
    seen = ResultRange()
    seen.update(X)
    assert seen.bounds().shape == (2, 8)
    seen.update(torch.full_like(X, float("inf")))
    seen.update(X)
    assert seen.bounds() is None
    assert ResultRange().bounds() is None


def test_they_are_saved(tmp_path):
    torch.manual_seed(0)
    program, _ = quantized(nn.Sequential(nn.Conv1d(8, 6, 3), nn.Softplus()), (X,))
    save_program(program, tmp_path / "net.fxopt")
    loaded = load_program(tmp_path / "net.fxopt", packages=["fxopt_quantize"])
    (before,), (after,) = (modules(each, QuantConv) for each in (program, loaded))
    assert torch.equal(after.bounds, before.bounds)
