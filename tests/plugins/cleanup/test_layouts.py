"""cleanup: copies and layouts, where results share memory or strides can be seen."""

import pytest
import torch
from torch import nn

from fxopt.testing import make_case, run_pass, worst_error
from fxopt.testing.blocks import NoOps, Shuffle
from fxopt.testing.reference import randomize
from fxopt_cleanup import Cleanup
from tests.building import Builder, aten
from tests.plugins.cleanup.support import (
    F64,
    check_result,
    clean,
    cleaned,
    operations,
)


@pytest.mark.parametrize("name", ["clone", "add 0", "mul 1", "pad", "cat"])
def test_a_result_does_not_become_an_alias_of_an_input(name):
    program, _ = cleaned(NoOps(name))
    x = torch.randn(2, 4, 6, 6, dtype=F64)
    program(x)[0].zero_()  # as the user may do
    assert x.abs().sum() > 0


def test_a_copy_between_reshapes_goes():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Shuffle(), nn.Flatten(), nn.Linear(144, 2))
    program, result = cleaned(model)
    kept = [name for name in operations(program) if name != "sym_size"]
    assert kept == ["Conv2d", "reshape", "transpose", "reshape", "flatten", "Linear"]
    assert result.summary == "1 no-op"


def contiguous_then(function):
    """conv - contiguous - function - linear; capture would drop the call of contiguous."""
    b = Builder(conv=nn.Conv2d(4, 4, 1), head=nn.Linear(144, 2))
    x = b.call("conv", b.input("x", 2, 4, 6, 6))
    x = function(b, b.call(aten.contiguous.default, x))
    return b.program(b.call("head", x))


def test_a_view_after_two_copies_is_turned_once():
    def function(b, x):
        other = b.call(aten.contiguous.default, b.call(aten.neg.default, x))
        both = b.call(aten.add.Tensor, x, other)
        return b.call(aten.view.default, both, [-1, 144])

    assert clean(contiguous_then(function)).details == {"copy": 2, "views to reshapes": 1}


def test_a_program_without_its_copies_takes_other_memory_formats():
    def function(b, x):
        return b.call(aten.view.default, b.call(aten.relu.default, x), [-1, 144])

    program = contiguous_then(function)
    x = torch.randn(2, 4, 6, 6)
    expected = program(x)[0]
    result = clean(program)
    assert result.details == {"copy": 1, "views to reshapes": 1}
    # without the reshape, the view would raise here
    strided = x.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(program(strided)[0], expected, rtol=1e-4, atol=1e-5)


def test_a_copy_that_something_strict_needs_stays():
    def function(b, x):
        return b.call(aten.as_strided.default, x, [2, 144], [144, 1])

    program = contiguous_then(function)
    assert not clean(program).changed


def test_a_copy_whose_layout_the_user_sees_stays():
    b = Builder(conv=nn.Conv2d(4, 4, 1))
    x = b.call("conv", b.input("x", 2, 4, 6, 6))
    x = b.call(aten.contiguous.default, x)
    program = b.program(b.call(aten.relu.default, x))
    assert not clean(program).changed
    strided = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    assert program(strided)[0].is_contiguous()


def test_arithmetic_that_makes_a_result_dense_stays():
    b = Builder()
    x = b.call(aten.slice.Tensor, b.input("x", 2, 4, 6), 1, 0, 4, 2)
    x = b.call(aten.mul.Tensor, x, 1)
    program = b.program(b.call(aten.relu.default, x))
    assert not clean(program).changed
    b = Builder()
    x = b.call(aten.mul.Tensor, b.call(aten.neg.default, b.input("x", 2, 4, 6)), 1)
    assert clean(b.program(b.call(aten.relu.default, x))).details["neutral"] == 1


def test_a_copy_to_another_memory_format_stays():
    b = Builder(head=nn.Linear(6, 2))
    x = b.call(aten.relu.default, b.input("x", 2, 4, 6, 6))
    x = b.call(aten.contiguous.default, x, memory_format=torch.channels_last)
    program = b.program(b.call("head", x))
    assert not clean(program).changed


def small_swin():
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([2, 2], 8, [2], [2], [4, 4], num_classes=5, stochastic_depth_prob=0.1)


def small_shufflenet():
    from torchvision.models import ShuffleNetV2

    return ShuffleNetV2([2, 2, 2], [8, 8, 16, 16, 32], num_classes=5)


REAL = {
    # shifted windows: masks from constants, layout changes, padding by nothing, stochastic depth
    "swin": (small_swin, {"pad", "dropout", "training only", "folded"}),
    # channel shuffle
    "shufflenet": (small_shufflenet, {"copy"}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_architectures_with_their_strides(name):
    make, rules = REAL[name]
    torch.manual_seed(0)
    case = make_case(name, randomize(make().double()).eval(), torch.randn(2, 3, 16, 16, dtype=F64))
    program, result = run_pass(Cleanup(), case)
    check_result(program)
    assert rules <= set(result.details)
    assert worst_error(case, program) == 0.0
    strided = case.inputs[0][0].contiguous(memory_format=torch.channels_last)
    assert torch.allclose(program(strided)[0], case.outputs()[0][0], rtol=1e-9)
    if name == "swin":  # nothing of the masks is computed at run time
        assert not {"new_zeros", "slice_scatter", "masked_fill"} & set(operations(program))
