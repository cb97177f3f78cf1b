"""Where int8 products of Inductor's own are tried: not where the library's are faster."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fxopt_inductor import Inductor, OneDNN
from fxopt_inductor.templates import may_pay
from fxopt_quantize.modules import FakeQuantize
from tests.building import Builder
from tests.plugins.int8 import qconv, qlinear
from tests.plugins.on_onednn import CPU

VNNI = replace(CPU, features=("avx2", "avx512f", "avx512_vnni"))


@pytest.mark.parametrize(
    ("features", "fast"),
    [
        (("avx2",), False),
        (("avx2", "avx_vnni"), False),
        (("avx2", "avx512f", "avx512_vnni"), True),
        (("avx512f", "amx_int8"), True),
    ],
)
def test_products_of_inductors_own_are_tried_where_it_writes_fast_ones(features, fast):
    b = Builder(conv=qconv(nn.Conv2d(4, 8, 3)), rounding=FakeQuantize(0.02, 128))
    program = b.program(b.call("conv", b.call("rounding", b.input("x", 2, 4, 8, 8))))
    target, x = replace(CPU, features=features), torch.randn(2, 4, 8, 8)
    for backend in (OneDNN(), Inductor()):
        found = [each.label for each in backend.tunings(program, (x,), target, milliseconds=1.0)]
        assert ("inductor template c++" in found) == fast


def program(layers, shape):
    b = Builder(**layers, rounding=FakeQuantize(0.02, 128))
    x = b.call("rounding", b.input("x", *shape))
    for name in layers:
        x = b.call(name, x)
    return b.program(x)


@pytest.mark.parametrize(
    ("size", "tried"), [(16, True), (40, True), (64, False), (128, False)]
)  # 1, 7, 19 and 75 million multiply-adds a layer
def test_large_convolutions_are_left_to_the_library(size, tried):
    layers = {name: qconv(nn.Conv2d(16, 16, 3, padding=1)) for name in ("one", "two")}
    net = program(layers, (2, 16, size, size))
    assert may_pay(net, VNNI) is tried
    assert len(Inductor().templates(net, VNNI)) == tried


def test_linear_layers_are_tried_at_any_size():
    assert may_pay(program({"fc": qlinear(nn.Linear(1024, 1024))}, (256, 1024)), VNNI)


def test_what_most_of_the_arithmetic_is_decides():
    few = {"conv": qconv(nn.Conv2d(16, 16, 1)), "fc": qlinear(nn.Linear(64, 4096))}
    assert may_pay(program(few, (2, 16, 64, 64)), VNNI)
    many = {"conv": qconv(nn.Conv2d(16, 256, 5)), "fc": qlinear(nn.Linear(60, 4))}
    assert not may_pay(program(many, (2, 16, 64, 64)), VNNI)
