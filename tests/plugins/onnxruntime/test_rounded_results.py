"""Results of convolutions rounded by channels on ONNX Runtime, a variant of the backend."""

import math

import pytest
import torch
from torch import nn

from fxopt_onnxruntime import ONNXRuntime
from tests.plugins.onnxruntime.support import (
    CPU,
    WINDOWS,
    Extremes,
    captured,
    quantized,
    relative,
)

ROUNDED = ONNXRuntime(rounded_results=True)


@pytest.mark.parametrize("name", ["groups", "2d", "3d", "behind a ReLU"])
def test_results_may_be_rounded_by_channels_instead(name):
    torch.manual_seed(0)
    layers = {
        "groups": [nn.Conv1d(8, 8, 3, groups=8), nn.Softplus()],
        "2d": [nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.Softplus()],
        "3d": [nn.Conv3d(8, 4, 2), nn.Softplus()],
        "behind a ReLU": [nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Softplus()],
    }[name]
    with torch.no_grad():
        layers[0].weight.mul_(
            torch.logspace(-3, 0, len(layers[0].weight)).reshape(
                -1, *[1] * (layers[0].weight.dim() - 1)
            )
        )  # channels of very different ranges
    x = torch.randn(4, 8, *[6] * (layers[0].weight.dim() - 2))
    program = quantized(captured(nn.Sequential(*layers), x), x)
    before = program.fingerprint()
    assert ONNXRuntime().variants(program, CPU, exact=False) == (ONNXRuntime(), ROUNDED)
    assert ROUNDED.label == "onnxruntime rounded results"
    lowering = ROUNDED.lower(program, (x,), CPU)
    for batch in (x, x[:1]):
        code = lowering.compile((batch,))
        assert code.precisions() == {"int8": 1}
        assert "QLinearConv" in {kernel.name.split()[0] for kernel in code.kernels()}
        error = (code(batch)[0] - program(batch)[0]).abs().amax([0, *range(2, x.dim())])
        (conv,) = (m for m in program.module.modules() if getattr(m, "bounds", None) is not None)
        assert bool((error <= 0.51 * 1.1 * conv.bounds.abs().amax(0) / 127 + 1e-6).all())
    assert program.fingerprint() == before


def test_a_channel_that_calibration_saw_dead_may_be_alive_elsewhere():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 4, 3, bias=False)
    with torch.no_grad():
        conv.weight[1, 1:] = 0
        conv.weight[1, 0] = 0.1
    dead = torch.randn(4, 8, 6, 6)
    dead[:, 0] = 0
    program = quantized(captured(nn.Sequential(conv, nn.Softplus()), dead), dead)
    alive = torch.randn(4, 8, 6, 6)
    output = ROUNDED.lower(program, (alive,), CPU).compile((alive,))(alive)[0]
    expected = program(alive)[0]
    assert float((output - expected)[:, 1].abs().max()) < 0.02
    assert float((expected[:, 1] - math.log(2)).abs().max()) > 0.1


def test_extremes_of_rounded_results_are_found_among_bytes():
    torch.manual_seed(0)
    conv, shape = WINDOWS["1d"]
    x = torch.randn(shape)
    for keepdim in (False, True):
        program = quantized(captured(Extremes(conv, (2,), keepdim), x), x)
        code = ROUNDED.lower(program, (x,), CPU).compile((x,))
        kinds = [kernel.name.split()[0] for kernel in code.kernels()]
        assert kinds[:2] == ["QLinearConv", "ReduceMin"]
        assert code(x)[0].shape == program(x)[0].shape
        assert relative(code(x)[0], program(x)[0]) < 0.02


@pytest.mark.parametrize("exact", [True, False])
def test_there_is_one_way_where_no_result_can_be_rounded(exact):
    x = torch.randn(2, 8, 12)
    model = nn.Sequential(nn.Conv1d(8, 6, 3), nn.Softplus())
    program = captured(model, x)
    if exact:
        program = quantized(program, x)
    assert ONNXRuntime().variants(program, CPU, exact=exact) == (ONNXRuntime(),)
