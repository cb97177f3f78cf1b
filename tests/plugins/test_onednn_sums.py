"""Sums that int8 layers compute with torch alone, and write over an addend."""

import pytest
import torch

from fxopt_inductor import OneDNN
from tests.building import aten
from tests.plugins.int8 import MOVED, Block, linear_block
from tests.plugins.on_onednn import compiled, conversions, count

onednn = torch.ops.onednn

pytestmark = pytest.mark.skipif(OneDNN().unavailable() is not None, reason="torch without oneDNN")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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


@pytest.mark.parametrize("again", ["", "addend"])
@pytest.mark.parametrize("moved", MOVED)
def test_an_addend_can_be_what_was_only_moved(moved, again):
    program, x = (
        Block(second=True, moved=MOVED[moved], again=again).program,
        torch.randn(2, 8, 6, 6),
    )
    executable = compiled(program, x)
    assert count(executable, onednn.qconv2d_pointwise.binary) == 1
    assert conversions(executable) == (1, 0)
    for _ in range(2):
        for output, wanted in zip(executable(x), program(x), strict=True):
            assert float((output - wanted).norm() / wanted.norm()) < 0.03


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
