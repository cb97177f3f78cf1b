"""Int8 with torch alone: each pattern against the float simulation, then whole nets."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxopt
from fxopt.cost import find_target
from fxopt.errors import BackendError
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt_fold_bn import FoldBN
from fxopt_inductor import OneDNN
from fxopt_inductor.flat import flat_module
from fxopt_inductor.lowp import Form, heavy_kernels, rewrite
from fxopt_quantize import Quantize
from fxopt_quantize.formats import safe
from fxopt_quantize.modules import (
    FakeQuantize,
    FakeQuantizePerChannel,
    QuantConvTranspose,
)
from fxopt_quantize.weights import quantize_weight
from tests.building import Builder, aten
from tests.plugins.int8 import Block, linear_block, qconv, qlinear

CPU = find_target("cpu")
onednn = torch.ops.onednn

pytestmark = pytest.mark.skipif(OneDNN().unavailable() is not None, reason="torch without oneDNN")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def compiled(program, *inputs):
    return OneDNN().lower(program, inputs, CPU).compile(inputs)


def count(executable, *targets):
    return sum(node.target in targets for node in executable.module.graph.nodes)


def conversions(executable):
    """How many quantizations and dequantizations are left."""
    casts = list(
        executable.module.graph.find_nodes(op="call_function", target=aten._to_copy.default)
    )
    to_codes = sum(node.kwargs["dtype"] is torch.uint8 for node in casts)
    return to_codes, len(casts) - to_codes


def check(program, *inputs, step=0.0, share=1.0):
    """Runs all forms; outputs may differ by ``step``, and by more than rounding in few places."""
    torch.manual_seed(1)
    executable = compiled(program, *inputs)
    with torch.no_grad():
        expected = program(*inputs)
        flat = flat_module(program, inputs)
        forms = [Form(compiled=True), Form(compiled=True, wide=False)]
        again = [rewrite(flat, form)(*inputs) for form in forms]
    for outputs in (executable(*inputs), *again):
        for output, wanted in zip(outputs, expected, strict=True):
            difference = (output - wanted).abs()
            rounding = 1e-5 * float(wanted.abs().max()) + 1e-6
            assert float(difference.max()) <= step * 1.001 + rounding
            assert float((difference <= rounding).float().mean()) >= share
    return executable


def one_layer(layer, shape, zero_point, *, scale=0.02, output=None, activation=None):
    """Rounded input, the layer, an activation and a rounding of what comes out."""
    modules = {"rounded": FakeQuantize(scale, zero_point), "layer": layer}
    b = Builder(**modules, **({} if output is None else {"out": output}))
    x = b.call("layer", b.call("rounded", b.input("x", *shape)))
    if activation is not None:
        x = b.call(*activation(x))
    return b.program(x if output is None else b.call("out", x))


# -- layers ----------------------------------------------------------------------------------

GEOMETRIES = {
    "3x3": (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 9, 7)),
    "stride": (nn.Conv2d(4, 8, 3, stride=2, padding=1), (2, 4, 9, 8)),
    "dilation": (nn.Conv2d(4, 8, 3, padding=2, dilation=2), (1, 4, 9, 9)),
    "odd kernel": (nn.Conv2d(4, 8, (1, 5), padding=(0, 2)), (1, 4, 6, 9)),
    "groups": (nn.Conv2d(8, 12, 3, padding=1, groups=4), (2, 8, 6, 6)),
    "depthwise": (nn.Conv2d(16, 16, 5, padding=2, groups=16), (2, 16, 7, 7)),
    "multiplier": (nn.Conv2d(8, 16, 3, padding=1, groups=8), (2, 8, 7, 7)),
    "pointwise": (nn.Conv2d(8, 12, 1), (2, 8, 5, 6)),
    "strided pointwise": (nn.Conv2d(8, 12, 1, stride=2), (2, 8, 5, 6)),
    "no bias": (nn.Conv2d(8, 12, 3, bias=False), (2, 8, 5, 6)),
    "same": (nn.Conv2d(4, 8, 3, padding="same"), (2, 4, 6, 6)),
    "patches": (nn.Conv2d(3, 16, 4, stride=4), (2, 3, 16, 16)),
    "reflected": (nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect"), (2, 4, 6, 6)),
    "one dimension": (nn.Conv1d(6, 8, 3, padding=1, stride=2), (2, 6, 11)),
    "pointwise, one dimension": (nn.Conv1d(6, 8, 1), (2, 6, 11)),
    "three dimensions": (nn.Conv3d(4, 8, 3, padding=1), (1, 4, 5, 6, 4)),
}


@pytest.mark.parametrize("zero_point", [0, 128, 77])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions(name, zero_point):
    conv, shape = GEOMETRIES[name]
    executable = check(one_layer(qconv(conv), shape, zero_point), torch.randn(shape))
    assert executable.precisions() == {"int8": 1}
    assert [(k.name, k.kind) for k in executable.kernels()] == [("layer", "Convolution")]


@pytest.mark.parametrize("zero_point", [0, 128, 200])
@pytest.mark.parametrize("shape", [(1, 12), (5, 12), (2, 7, 12), (2, 3, 4, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(shape, bias, zero_point):
    program = one_layer(qlinear(nn.Linear(12, 20, bias=bias)), shape, zero_point)
    executable = check(program, torch.randn(shape))
    assert [(k.name, k.kind, k.precision) for k in executable.kernels()] == [
        ("layer", "MatMul", "int8")
    ]


@settings(max_examples=30, deadline=None)
@given(
    channels=st.sampled_from([(1, 3, 1), (5, 7, 1), (16, 16, 16), (8, 8, 2)]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    zero_points=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    scales=st.tuples(st.floats(0.005, 0.1), st.floats(0.005, 0.1)),
    seed=st.integers(0, 1 << 20),
)
def test_any_convolution_between_any_grids(
    channels, kernel, stride, padding, zero_points, scales, seed
):
    torch.manual_seed(seed)
    inputs, outputs, groups = channels
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
    rounded = FakeQuantize(scales[1], zero_points[1])
    shape = (1, inputs, 6, 7)
    program = one_layer(qconv(conv), shape, zero_points[0], scale=scales[0], output=rounded)
    executable = check(program, torch.randn(shape), step=scales[1], share=0.95)
    assert conversions(executable) == (1, 1)  # at the entrance and at the exit


# -- activations -----------------------------------------------------------------------------

ACTIVATIONS = {
    "relu": (lambda x: (aten.relu.default, x), "both"),
    "relu6": (lambda x: (aten.relu6.default, x), "both"),
    "hardtanh": (lambda x: (aten.hardtanh.default, x, -0.5, 0.25), "both"),
    "clamp": (lambda x: (aten.clamp.default, x, -0.25, 0.5), "both"),
    "clamp from below": (lambda x: (aten.clamp.default, x, 0.0), "both"),
    "hardswish": (lambda x: (aten.hardswish.default, x), "both"),
    "silu": (lambda x: (aten.silu.default, x), "both"),
    "tanh": (lambda x: (aten.tanh.default, x), "linear"),
    "gelu": (lambda x: (aten.gelu.default, x), "linear"),
    "leaky_relu": (lambda x: (aten.leaky_relu.default, x, 0.1), "linear"),
    "sigmoid": (lambda x: (aten.sigmoid.default, x), "neither"),
    "clamp from above": (lambda x: (aten.clamp.default, x, None, 0.3), "neither"),
    "elu": (lambda x: (aten.elu.default, x), "neither"),
}


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("zero_point", [None, 0, 100])
def test_activations(name, kind, zero_point):
    activation, fused = ACTIVATIONS[name]
    layer = qconv(nn.Conv2d(8, 12, 3)) if kind == "conv" else qlinear(nn.Linear(12, 20))
    shape = (2, 8, 6, 6) if kind == "conv" else (6, 12)
    output = None if zero_point is None else FakeQuantize(0.01, zero_point)
    program = one_layer(layer, shape, 128, output=output, activation=activation)
    step = 0.0 if output is None else 0.01
    executable = check(program, torch.randn(shape), step=step, share=0.97)
    (node,) = list(executable.module.graph.nodes)[-1].all_input_nodes
    if fused == "both" or (fused == "linear" and kind == "linear"):
        layers = (onednn.qconv_pointwise.default, onednn.qlinear_pointwise.default)
        inside = [n.target for n in executable.module.graph.nodes if n.op == "call_function"]
        assert (
            activation(None)[0]
            not in inside[inside.index(next(filter(layers.__contains__, inside))) :]
        )
        assert zero_point is not None or node.target in layers


def test_what_rounding_clamps_already_is_not_clamped_again():
    program = one_layer(
        qconv(nn.Conv2d(4, 4, 3)),
        (1, 4, 6, 6),
        0,
        output=FakeQuantize(6 / 255, 0),
        activation=lambda x: (aten.relu6.default, x),
    )
    executable = check(program, torch.randn(1, 4, 6, 6), step=6 / 255, share=0.97)
    (conv,) = executable.module.graph.find_nodes(
        op="call_function", target=onednn.qconv_pointwise.default
    )
    assert "none" in conv.args


# -- grids with a scale for each channel ------------------------------------------------------


@pytest.mark.parametrize("zero_point", [0, 128])
@pytest.mark.parametrize("outputs", [8, 16])
def test_a_depthwise_convolution_takes_a_scale_for_each_channel(zero_point, outputs):
    conv = nn.Conv2d(8, outputs, 3, padding=1, groups=8)
    grid = FakeQuantizePerChannel(torch.rand(8) * 0.02 + 0.005, zero_point)
    b = Builder(rounded=grid, layer=qconv(conv))
    program = b.program(b.call("layer", b.call("rounded", b.input("x", 2, 8, 6, 6))))
    executable = check(program, torch.randn(2, 8, 6, 6))
    assert executable.precisions() == {"int8": 1}


@pytest.mark.parametrize(
    ("activation", "fused"),
    [(aten.relu.default, True), (aten.relu6.default, True), (aten.hardswish.default, False)],
)
def test_a_convolution_gives_a_scale_for_each_channel(activation, fused):
    scales = torch.rand(8) * 0.02 + 0.003
    b = Builder(
        first=FakeQuantize(0.02, 128),
        expand=qconv(nn.Conv2d(6, 8, 1)),
        second=FakeQuantizePerChannel(scales, 0),
        depthwise=qconv(nn.Conv2d(8, 8, 3, padding=1, groups=8)),
    )
    x = b.call(activation, b.call("expand", b.call("first", b.input("x", 2, 6, 6, 6))))
    program = b.program(b.call("depthwise", b.call("second", x)))
    executable = check(program, torch.randn(2, 6, 6, 6), step=0.1, share=0.9)
    assert executable.precisions() == {"int8": 2}
    assert (conversions(executable) == (1, 0)) is fused


def test_other_convolutions_on_a_scale_for_each_channel_stay_in_float():
    grid = FakeQuantizePerChannel(torch.rand(8) * 0.02 + 0.005, 0)
    b = Builder(
        rounded=grid,
        layer=qconv(nn.Conv2d(8, 4, 3)),
        first=FakeQuantize(0.05, 128),
        last=qconv(nn.Conv2d(4, 4, 3)),
    )
    x = b.call("layer", b.call("rounded", b.input("x", 2, 8, 6, 6)))
    program = b.program(b.call("last", b.call("first", x)))
    executable = check(program, torch.randn(2, 8, 6, 6))
    assert [(k.name, k.precision) for k in executable.kernels()] == [
        ("layer", "f32"),
        ("last", "int8"),
    ]


# -- sums ------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_residual_sums_are_part_of_the_convolution(swapped, relu, second):
    program = Block(swapped=swapped, relu=relu, second=second).program
    x = torch.randn(2, 8, 6, 6)
    executable = compiled(program, x)
    assert count(executable, onednn.qconv2d_pointwise.binary) == 1
    assert count(executable, aten.add.Tensor) == 1  # the zero point of the first rounding
    assert count(executable, aten.relu.default) == 0
    # a convolution cannot write over what it reads
    assert count(executable, aten.clone.default) == (0 if second else 1)
    assert conversions(executable) == (1, 0)
    # the addend that is not rounded first moves the sum by half its step, the sum by another
    wanted = program(x)[0].detach()
    assert float((executable(x)[0] - wanted).norm() / wanted.norm()) < 0.03


def test_an_addend_can_be_what_a_pooling_moves():
    program, x = Block(second=True, pooled=True).program, torch.randn(2, 8, 6, 6)
    executable = compiled(program, x)
    assert count(executable, onednn.qconv2d_pointwise.binary) == 1
    assert conversions(executable) == (1, 0)
    wanted = program(x)[0].detach()
    assert float((executable(x)[0] - wanted).norm() / wanted.norm()) < 0.03


@pytest.mark.parametrize("again", ["addend", "view"])
def test_an_addend_that_is_used_again_is_not_written_over(again):
    program, x = Block(again=again).program, torch.randn(2, 8, 6, 6)
    executable = compiled(program, x)
    expected = [output.detach() for output in program(x)]
    outputs = executable(x)
    torch.testing.assert_close(outputs[1], expected[1], rtol=1e-5, atol=1e-5)
    assert float((outputs[0] - expected[0]).norm() / expected[0].norm()) < 0.03
    before = x.clone()
    executable(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("again", [False, True])
def test_sums_of_linear_layers(again):
    program, inputs = linear_block(again), torch.randn(4, 3, 16)
    executable = compiled(program, inputs)
    assert count(executable, onednn.qlinear_pointwise.binary) == 1
    assert count(executable, aten.clone.default) == int(again)
    for output, wanted in zip(executable(inputs), program(inputs), strict=True):
        assert float((output - wanted).detach().norm() / wanted.detach().norm()) < 0.03


# -- what moves values, and who takes them ----------------------------------------------------

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


# -- the backend -----------------------------------------------------------------------------


def test_a_float_program_is_refused():
    b = Builder(fc=nn.Linear(4, 4))
    program = b.program(b.call("fc", b.input("x", 2, 4)))
    with pytest.raises(BackendError, match="no layer of the program is quantized"):
        compiled(program, torch.randn(2, 4))


def test_where_it_wins_compiled_calls_of_the_same_operators_are_tried():
    b = Builder(conv=qconv(nn.Conv2d(4, 8, 3)), rounding=FakeQuantize(0.02, 128))
    program = b.program(b.call("conv", b.call("rounding", b.input("x", 2, 4, 8, 8))))
    x = torch.randn(2, 4, 8, 8)
    vnni = replace(CPU, features=("avx2", "avx512f", "avx512_vnni"))
    found = OneDNN().tunings(program, (x,), vnni, milliseconds=1.0)
    assert [each.label for each in found] == ["inductor c++", "inductor template c++"]
    for backend in found:
        if backend.unavailable() is None:
            code = backend.lower(program, (x,), CPU).compile((x,))
            assert code.precisions() == compiled(program, x).precisions() == {"int8": 1}


def test_it_says_which_operators_are_missing(monkeypatch):
    from fxopt_inductor.lowp import operators

    monkeypatch.setattr(operators, "find_operator", lambda name, overload: None)
    assert "onednn.qconv_pointwise.default" in OneDNN().unavailable()


def test_threads_can_call_at_once():
    program = Block().program
    executable = compiled(program, torch.randn(2, 8, 6, 6))
    many = [torch.randn(2, 8, 6, 6) for _ in range(32)]
    expected = [executable(x)[0] for x in many]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda x: executable(x)[0], many))
    assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))


def test_inputs_need_not_be_dense():
    program = Block().program
    x = torch.randn(2, 8, 6, 6)
    executable = compiled(program, x)
    strided = x.transpose(2, 3)
    dense = executable(strided.contiguous())[0]
    torch.testing.assert_close(executable(strided)[0], dense, rtol=1e-5, atol=1e-5)
    channels_last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    output = executable(channels_last)[0]
    assert not output.requires_grad
    torch.testing.assert_close(output, executable(x)[0], rtol=1e-5, atol=1e-5)


# -- whole nets ------------------------------------------------------------------------------


def quantized(model, x):
    program = capture_program(model.eval(), (x,), {}).clone()
    context = Context(CPU, calibration=Calibration([(x,)], program.signature))
    FoldBN().run(program, context)
    Quantize().run(program, context)
    return program


class SmallViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def torchvision_net(name):
    import torchvision

    return torchvision.models.get_model(name, weights=None)


# How many layers there are, and how far from the simulation outputs may be, in units of what that
# is from the float model. A resnet's sums take an addend that is not rounded: that is closer to the
# float model than the simulation is, and so as far from this one.
NETS = {
    "resnet18": (lambda: torchvision_net("resnet18"), 21, 1.25),
    "mobilenet_v2": (lambda: torchvision_net("mobilenet_v2"), 53, 1.0),
    "mobilenet_v3_small": (lambda: torchvision_net("mobilenet_v3_small"), 54, 1.0),
    "shufflenet": (lambda: torchvision_net("shufflenet_v2_x0_5"), 57, 1.0),
    "vit": (SmallViT, 10, 1.0),
}


@pytest.mark.parametrize("name", NETS)
def test_whole_nets(name):
    torch.manual_seed(0)
    make, layers, apart = NETS[name]
    # of one image alone, chance decides how rounding adds up, and each machine rounds otherwise
    model, x = make().eval(), torch.randn(4, 3, 64, 64)
    program = quantized(model, x)
    executable = compiled(program, x)
    with torch.no_grad():
        wanted, simulated = model(x), program(x)[0]
    drift = float((simulated - wanted).norm())
    assert executable.precisions()["int8"] == layers
    floats = {k.kind for k in executable.kernels() if k.precision != "int8"}
    assert floats == ({"Attention"} if name == "vit" else set())
    # as far from the float model as the simulation is, and not farther from the simulation
    assert float((executable(x)[0] - wanted).norm()) < 1.1 * drift
    assert float((executable(x)[0] - simulated).norm()) < apart * drift


def test_between_the_convolutions_of_a_resnet_flow_bytes():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    program = quantized(torchvision_net("resnet18"), x)
    executable = compiled(program, x)
    assert count(executable, aten.conv2d.default, aten.linear.default) == 0
    assert count(executable, onednn.qconv2d_pointwise.binary) >= 7  # of 8
    # rounded at the entrance, around the last sum and its average; the sum takes both addends
    to_codes, to_floats = conversions(executable)
    assert to_codes <= 3
    assert to_floats <= 3
    assert count(executable, aten.clone.default) == 0
    kernels = heavy_kernels(executable.module).values()
    assert {kernel.name for kernel in kernels} >= {"conv1", "layer4.1.conv2", "fc"}


def test_optimize_takes_it():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten()
    )
    x = torch.randn(1, 3, 32, 32)
    fast = fxopt.optimize(
        model.eval(), (x,), passes="quantize", calibration=[(x,)], backends=["onednn"]
    )
    (record,) = [c for c in fast.report.regions[0].candidates if c.version == "lossy"]
    assert record.backend == "onednn"
    assert record.precisions == {"int8": 2}
    with torch.no_grad():
        wanted = model(x)
    assert record.error is not None
    assert record.error < 0.05
    assert float((fast(x) - wanted).norm() / wanted.norm()) < 0.05
