"""Int8 with torch alone: each layer against the float simulation, and the backend itself."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt.errors import BackendError
from fxopt_inductor import OneDNN
from fxopt_quantize.modules import (
    FakeQuantize,
    FakeQuantizePerChannel,
)
from tests.building import Builder, aten
from tests.plugins.int8 import Block, qconv, qlinear
from tests.plugins.on_onednn import CPU, check, compiled, conversions

onednn = torch.ops.onednn

pytestmark = pytest.mark.skipif(OneDNN().unavailable() is not None, reason="torch without oneDNN")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("result", [None, FakeQuantize(0.0625, 0)])
def test_windows_in_the_padding_alone_see_the_zero_point(dims, result):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](1, 16, 2, padding=2)
    shape = (1, 1, *(6, 7, 5)[:dims])
    program = one_layer(qconv(conv), shape, 1, output=result)
    for _ in range(12):  # where it is wrong, it depends on what was in memory
        check(program, torch.randn(shape), step=0.0625 if result else 0.0, share=0.95)


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


# -- the backend -----------------------------------------------------------------------------


def test_a_float_program_is_refused():
    b = Builder(fc=nn.Linear(4, 4))
    program = b.program(b.call("fc", b.input("x", 2, 4)))
    idle = "no layer of the program is quantized"
    assert OneDNN().unsupported(program, CPU).startswith(idle)  # before anything is built
    with pytest.raises(BackendError, match=idle):
        compiled(program, torch.randn(2, 4))


def test_programs_with_quantized_weights_are_taken():
    for layer in (qconv(nn.Conv2d(4, 8, 3)), qlinear(nn.Linear(4, 4))):
        b = Builder(layer=layer)
        size = (2, 4, 8, 8) if layer.family == "convolution" else (2, 4)
        program = b.program(b.call("layer", b.input("x", *size)))
        assert OneDNN().unsupported(program, CPU) is None


def test_where_it_wins_compiled_calls_of_the_same_operators_are_tried():
    b = Builder(conv=qconv(nn.Conv2d(4, 8, 3)), rounding=FakeQuantize(0.02, 128))
    program = b.program(b.call("conv", b.call("rounding", b.input("x", 2, 4, 8, 8))))
    x = torch.randn(2, 4, 8, 8)
    vnni = replace(CPU, features=("avx2", "avx512f", "avx512_vnni"))
    found = OneDNN().tunings(program, (x,), vnni, milliseconds=0.5)
    assert [each.label for each in found] == ["inductor c++", "inductor template c++"]
    slower = OneDNN().tunings(program, (x,), vnni, milliseconds=50.0)  # where calls do not matter
    assert [each.label for each in slower] == ["inductor", "inductor template c++"]
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
