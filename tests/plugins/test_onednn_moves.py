"""What only moves values between int8 layers with torch alone, and who takes them."""

import pytest
import torch
from torch import nn

from fxopt_inductor import OneDNN
from fxopt_quantize.formats import safe
from fxopt_quantize.modules import FakeQuantize, QuantConvTranspose
from fxopt_quantize.weights import quantize_weight
from tests.building import Builder, aten
from tests.plugins.int8 import qconv, qlinear
from tests.plugins.on_onednn import CPU, check, compiled, conversions, count

pytestmark = pytest.mark.skipif(OneDNN().unavailable() is not None, reason="torch without oneDNN")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


MOVES = {
    "max_pool": lambda b, x: b.call(aten.max_pool2d.default, x, [3, 3], [2, 2], [1, 1]),
    "pad": lambda b, x: b.call(aten.constant_pad_nd.default, x, [1, 2, 0, 1]),
    "slice": lambda b, x: b.call(aten.slice.Tensor, x, 2, 1, 4),
    "shuffle": lambda b, x: b.call(aten.channel_shuffle.default, x, 2),
    "nearest": lambda b, x: b.call(aten.upsample_nearest2d.vec, x, None, [2.0, 2.0]),
    "flip": lambda b, x: b.call(aten.flip.default, x, [3]),
    "cat": lambda b, x: b.call(aten.cat.default, [x, b.call(aten.alias.default, x)], 2),
}


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("size", [6, 272])
def test_values_move_as_bytes(name, size):
    b = Builder(
        first=FakeQuantize(0.02, 50),
        one=qconv(nn.Conv2d(3, 4, 1)),
        second=FakeQuantize(0.03, 60),
        two=qconv(nn.Conv2d(4, 4, 1)),
    )
    shape = (1, 3, size, 6)
    x = b.call("second", b.call("one", b.call("first", b.input("x", *shape))))
    program = b.program(b.call("two", MOVES[name](b, x)))
    inputs = torch.randn(shape)
    executable = compiled(program, inputs)
    wanted = program(inputs)[0].detach()
    assert float((executable(inputs)[0] - wanted).abs().max()) < 0.1
    assert conversions(executable) == (1, 0)
    assert executable.precisions() == {"int8": 2}


def test_grids_that_differ_are_kept_apart():
    b = Builder(
        first=FakeQuantize(0.02, 128),
        stem=qconv(nn.Conv2d(3, 8, 1)),
        fine=FakeQuantize(0.01, 128),
        coarse=FakeQuantize(0.1, 100),
        one=qconv(nn.Conv2d(8, 4, 1)),
        two=qconv(nn.Conv2d(8, 4, 1)),
    )
    stem = b.call("stem", b.call("first", b.input("x", 2, 3, 5, 5)))
    one, two = b.call("one", b.call("fine", stem)), b.call("two", b.call("coarse", stem))
    program = b.program(one, two, b.call(aten.sigmoid.default, stem))
    executable = check(program, torch.randn(2, 3, 5, 5), step=0.12, share=0.8)
    assert conversions(executable) == (3, 0)
    assert executable.precisions() == {"int8": 3}


def test_one_grid_serves_int8_and_float():
    b = Builder(
        first=FakeQuantize(0.02, 128),
        stem=qconv(nn.Conv2d(3, 8, 1)),
        fine=FakeQuantize(0.01, 128),
        one=qconv(nn.Conv2d(8, 8, 1)),
    )
    fine = b.call("fine", b.call("stem", b.call("first", b.input("x", 2, 3, 5, 5))))
    program = b.program(b.call("one", fine), b.call(aten.sigmoid.default, fine))
    executable = check(program, torch.randn(2, 3, 5, 5), step=0.02, share=0.8)
    assert conversions(executable) == (1, 1)


def test_what_has_no_int8_kernel_is_named():
    layer = nn.ConvTranspose2d(8, 4, 2, stride=2)
    b = Builder(
        first=FakeQuantize(0.02, 128),
        up=QuantConvTranspose(layer, quantize_weight(layer.weight, 1, safe(CPU))),
        second=FakeQuantize(0.02, 128),
        last=qconv(nn.Conv2d(4, 4, 1)),
    )
    up = b.call("up", b.call("first", b.input("x", 2, 8, 5, 5)))
    program = b.program(b.call("last", b.call("second", up)))
    executable = check(program, torch.randn(2, 8, 5, 5))
    assert [(k.name, k.precision) for k in executable.kernels()] == [
        ("up", "f32"),
        ("last", "int8"),
    ]
    # its weights are turned to float once, not on each call
    (call,) = executable.module.graph.find_nodes(
        op="call_function", target=aten.conv_transpose2d.input
    )
    assert call.args[1].op == "get_attr"


def test_products_of_activations_take_them_unrounded():
    b = Builder(
        first=FakeQuantize(0.02, 128),
        fc=qlinear(nn.Linear(8, 8)),
        grid=FakeQuantize(0.05, 128),
    )
    x = b.call("fc", b.call("first", b.input("x", 2, 6, 8)))
    heads = b.call(aten.unsqueeze.default, b.call("grid", x), 1)
    attended = b.call(aten.scaled_dot_product_attention.default, heads, heads, heads)
    program, x = b.program(attended), torch.randn(2, 6, 8)
    executable, wanted = compiled(program, x), program(x)[0].detach()
    assert conversions(executable) == (1, 0)
    assert float((executable(x)[0] - wanted).abs().max()) < 0.05
    assert [(k.kind, k.precision) for k in executable.kernels()] == [
        ("MatMul", "int8"),
        ("Attention", "f32"),
    ]


def test_a_fake_quantizer_of_fewer_values_stays_as_it_is():
    b = Builder(conv=qconv(nn.Conv2d(3, 4, 1)), first=FakeQuantize(0.02, 128))
    x = b.input("x", 2, 3, 5, 5)
    narrow = b.call(aten.fake_quantize_per_tensor_affine.default, x, 0.1, 8, 0, 15)
    program = b.program(b.call("conv", b.call("first", narrow)))
    executable = check(program, torch.randn(2, 3, 5, 5))
    assert count(executable, aten.fake_quantize_per_tensor_affine.default) == 1
    assert executable.precisions() == {"int8": 1}


def test_signed_codes_are_shifted():
    b = Builder(conv=qconv(nn.Conv2d(3, 4, 3, padding=1)))
    x = b.input("x", 2, 3, 5, 5)
    signed = b.call(aten.fake_quantize_per_tensor_affine.default, x, 0.02, -5, -128, 127)
    executable = check(b.program(b.call("conv", signed)), torch.randn(2, 3, 5, 5))
    assert executable.precisions() == {"int8": 1}
