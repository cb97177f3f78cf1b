"""Sums that int8 operators compute where a compiler comes next and reads bytes slowly."""

from dataclasses import replace

import pytest
import torch

from fxopt.cost import find_target
from fxopt_inductor import Inductor
from fxopt_inductor.flat import flat_module
from fxopt_inductor.lowp import Form, rewrite
from tests.building import aten
from tests.plugins.int8 import MOVED, Block, linear_block

SLOW, FAST = (replace(find_target("cpu"), features=each) for each in (("avx2",), ("avx512f",)))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def compiled(program, x, target=SLOW):
    if (reason := Inductor().unavailable()) is not None:
        pytest.skip(reason)
    return Inductor().lower(program, (x,), target).compile((x,))


def sums(code):
    return code.code.count("pointwise.binary_tensor(")


def is_right(code, program, x):
    """As in the program, but for the layer's own addend, which is not rounded first."""
    before, expected = x.clone(), [output.detach() for output in program(x)]
    for _ in range(2):
        outputs = code(x)
        for output, wanted in zip(outputs, expected, strict=True):
            assert float((output - wanted).norm() / wanted.norm()) < 0.03
        for output, wanted in zip(outputs[1:], expected[1:], strict=True):
            torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)
    return torch.equal(x, before)


@pytest.mark.parametrize("again", ["", "addend", "view"])
@pytest.mark.parametrize("moved", [None, "pooled", "the same"])
def test_the_convolution_computes_them(again, moved):
    x = torch.randn(2, 8, 6, 6)
    program = Block(second=True, again=again, moved=MOVED.get(moved)).program
    code = compiled(program, x)
    assert sums(code) == 1
    assert is_right(code, program, x)


@pytest.mark.parametrize(
    ("program", "shape", "target"),
    [
        (lambda: Block().program, (2, 8, 6, 6), SLOW),
        (lambda: linear_block(again=True), (4, 3, 16), SLOW),
        (lambda: Block(second=True).program, (2, 8, 6, 6), FAST),
    ],
    ids=["what it reads", "linear", "fast"],
)
def test_the_compiler_computes_the_others(program, shape, target):
    program, x = program(), torch.randn(shape)
    code = compiled(program, x, target)
    assert sums(code) == 0
    assert is_right(code, program, x)


def test_an_addend_that_a_layer_takes_too_is_given_in_bytes():
    program, x = Block(second=True, again="addend").program, torch.randn(2, 8, 6, 6)
    module = rewrite(flat_module(program, (x,)), Form(compiled=True, wide=False))
    casts = module.graph.find_nodes(op="call_function", target=aten._to_copy.default)
    assert [node.kwargs["dtype"] for node in casts] == [torch.uint8]  # what comes in
