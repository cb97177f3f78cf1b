"""cleanup: equal calls become one, unless that could be noticed."""

import pytest
import torch
from torch import nn

from tests.building import Builder, aten
from tests.plugins.cleanup.support import (
    Calls,
    clean,
    cleaned,
    operations,
)


def test_equal_calls_become_one():
    program, result = cleaned(
        Calls(
            lambda m, x: (
                m.conv(torch.relu(x)) * m.conv(torch.relu(x)).sigmoid() + m.shift + m.shift
            ),
            conv=nn.Conv2d(4, 4, 1),
            shift=nn.Parameter(torch.ones(1)),
        )
    )
    assert operations(program) == ["relu", "Conv2d", "sigmoid", "mul", "add", "add"]
    assert result.details["merged"] == 2  # export has one get_attr for the parameter


def test_one_tensor_under_two_names_is_read_once():
    b = Builder()
    table = nn.Parameter(torch.randn(4))
    x = b.input("x", 2, 4)
    y = b.call(aten.add.Tensor, x, b.attribute("first", table))
    z = b.call(aten.mul.Tensor, y, b.attribute("second", table))
    program = b.program(z)
    assert clean(program).details == {"merged": 1}
    assert [node.op for node in program.nodes].count("get_attr") == 1


@pytest.mark.parametrize(
    ("operator", "one", "other"),
    [
        (aten.add.Tensor, 3, 3.0),
        (aten.add.Tensor, 1, True),
        (aten.copysign.Scalar, 0.0, -0.0),
        (aten.to.dtype, torch.float32, torch.float64),
        (aten.sum.dim_IntList, [0], [1]),
    ],
    ids=str,
)
def test_arguments_that_differ_are_told_from_each_other(operator, one, other):
    b = Builder()
    x = b.input("x", 4, 4, dtype=torch.int32)
    results = [b.call(operator, x, argument) for argument in (one, other)]
    program = b.program(*(b.call(aten.neg.default, result) for result in results))
    assert not clean(program).changed


@pytest.mark.parametrize(
    "make",
    [lambda: nn.RReLU(), lambda: nn.BatchNorm1d(4), lambda: nn.FractionalMaxPool2d(2, 1)],
    ids=["RReLU", "BatchNorm1d", "FractionalMaxPool2d"],
)
def test_modules_with_a_state_or_random_numbers_are_called_twice(make):
    b = Builder(leaf=make().eval())
    sizes = (2, 4, 6, 6) if isinstance(make(), nn.FractionalMaxPool2d) else (2, 4)
    x = b.input("x", *sizes)
    y = b.call(aten.add.Tensor, b.call("leaf", x), b.call("leaf", x))
    program = b.program(y)
    assert not clean(program).changed


def test_random_operations_are_not_merged():
    b = Builder()
    x = b.input("x", 2, 4)
    noise = [b.call(aten.rand_like.default, x) for _ in range(2)]
    program = b.program(b.call(aten.sub.Tensor, *noise))
    assert not clean(program).changed
    assert program(torch.ones(2, 4))[0].abs().sum() > 0


def test_two_results_keep_memory_of_their_own():
    b = Builder()
    x = b.input("x", 2, 4)
    program = b.program(b.call(aten.relu.default, x), b.call(aten.relu.default, x))
    assert not clean(program).changed
    first, second = program(torch.ones(2, 4))
    first.zero_()  # as the user may do
    assert second.sum() == 8
