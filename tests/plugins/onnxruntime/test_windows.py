"""Convolutions of bytes with a float result on ONNX Runtime: products of gathered windows."""

import pytest
import torch
from torch import nn

from fxopt_onnxruntime import ONNXRuntime
from tests.plugins.onnxruntime.support import (
    CPU,
    WINDOWS,
    Extremes,
    captured,
    compile_for,
    quantized,
    relative,
)


def test_patches_whose_result_is_float_are_a_product_too():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Conv2d(3, 16, 4, stride=4), nn.LayerNorm(16)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.norm(self.embed(x).flatten(2).transpose(1, 2)))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 8)
    program = quantized(captured(Patches(), x), x)
    code = compile_for(program, x)
    assert code.precisions() == {"int8": 2}
    assert relative(code(x)[0], program(x)[0]) < 0.01


@pytest.mark.parametrize("name", sorted(WINDOWS))
def test_windows_whose_result_is_float_are_a_product_too(name):
    torch.manual_seed(0)
    conv, shape = WINDOWS[name]
    x = torch.randn(shape) + 0.5  # a zero point off the middle, and unlike what padding is
    model = nn.Sequential(conv, nn.Softplus())
    program = quantized(captured(model, x), x, activations="asymmetric")
    assert program.signature.batch
    lowering = ONNXRuntime().lower(program, (x,), CPU)
    for batch in (x, x[:1], torch.cat([x, x.flip(0)])):
        code = lowering.compile((batch,))
        assert code.precisions() == {"int8": 1}
        assert relative(code(batch)[0], program(batch)[0]) < 1e-4


@pytest.mark.parametrize("keepdim", [False, True])
@pytest.mark.parametrize(
    ("name", "dims", "pooled"), [("1d", (2,), 2), ("2d", (2, 3), 2), ("2d", (3,), 0)]
)
def test_extremes_of_products_are_pooled(name, dims, pooled, keepdim):
    torch.manual_seed(0)
    conv, shape = WINDOWS[name]
    x = torch.randn(shape)
    program = quantized(captured(Extremes(conv, dims, keepdim), x), x)
    code = compile_for(program, x)
    kinds = [kernel.name.split()[0] for kernel in code.kernels()]
    assert kinds.count("GlobalMaxPool") == pooled
    output, expected = code(x)[0], program(x)[0]
    assert output.shape == expected.shape
    assert relative(output, expected) < 1e-4


SPARING = {
    "few outputs": nn.Conv1d(16, 8, 5),
    "few channels": nn.Conv1d(4, 32, 5),
    "groups": nn.Conv1d(32, 32, 5, groups=2),
}


@pytest.mark.parametrize("name", sorted(SPARING))
def test_windows_that_are_not_worth_gathering_stay_a_convolution(name):
    torch.manual_seed(0)
    conv = SPARING[name]
    x = torch.randn(2, conv.in_channels, 20)
    program = quantized(captured(nn.Sequential(conv, nn.Softplus()), x), x)
    code = compile_for(program, x)
    assert code.precisions() == {"f32": 1}
    assert relative(code(x)[0], program(x)[0]) < 1e-4


def test_windows_that_would_fill_the_memory_stay_a_convolution(monkeypatch, tmp_path):
    torch.manual_seed(0)
    conv, shape = WINDOWS["1d"]
    x = torch.randn(shape)
    program = quantized(captured(nn.Sequential(conv, nn.Softplus()), x), x)
    gathered = 16 * 16 * 5  # windows, channels, width
    for most, precision in ((gathered, "int8"), (gathered - 1, "f32")):
        monkeypatch.setattr("fxopt_onnxruntime.rules.windows._MOST_BYTES", most)
        monkeypatch.setenv("FXOPT_CACHE_DIR", str(tmp_path / str(most)))  # no model is kept
        assert compile_for(program, x).precisions() == {precision: 1}
