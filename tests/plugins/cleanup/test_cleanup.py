"""cleanup: every rule by hand, and what must stay although it looks as if it could go."""

import operator

import pytest
import torch
from torch import nn

from fxopt.frontend import capture_program
from fxopt.ir import LeafModule, ScaledDotProductAttention
from fxopt.testing import check_pass, make_case, run_pass, worst_error
from fxopt.testing.blocks import NO_OPS, NoOps, Shuffle
from fxopt.testing.reference import randomize
from fxopt_cleanup import FACTS, Cleanup
from fxopt_cleanup.noops import RULES
from tests.building import Builder, aten
from tests.plugins.cleanup.support import (
    CONTEXT,
    F64,
    Calls,
    check_result,
    clean,
    cleaned,
    operations,
)

# -- dead code ---------------------------------------------------------------------------------


def with_dead_code():
    b = Builder(unused=nn.Linear(4, 4))
    x = b.input("x", 2, 4)
    b.call(aten.bernoulli.default, b.call(aten.relu.default, b.call("unused", x)))
    halves = b.call(aten.chunk.default, x, 2, 1)
    used = b.call(operator.getitem, halves, 0)
    b.call(operator.getitem, halves, 1)
    return b.program(used)


def test_dead_code_goes_with_its_modules():
    program = with_dead_code()
    assert len(list(FACTS[0].counterexamples(program))) == 4
    result = clean(program)
    assert operations(program) == ["chunk", "getitem"]
    assert result.summary == "4 dead"
    assert not program.module.state_dict()
    assert len(result.rewrites) == 2  # a chain of three, and a getitem


def test_inputs_stay_though_unused():
    b = Builder()
    x, unused = b.input("x", 2, 4), b.input("unused", 2, 4)
    program = b.program(b.call(aten.relu.default, x))
    clean(program)
    assert unused in program.inputs


# -- common subexpressions ---------------------------------------------------------------------


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


# -- constants ---------------------------------------------------------------------------------


def test_what_depends_on_buffers_and_constants_alone_is_folded():
    def forward(m, x):
        steps = torch.arange(4, dtype=x.dtype) * 2
        mask = torch.full((4, 4), float("-inf"), dtype=x.dtype).triu(1)
        return torch.softmax(x @ ((m.table / steps.add(1)).exp()[:, None] * m.table) + mask, -1)

    program, result = cleaned(Calls(forward, table=torch.randn(4)), torch.randn(2, 4, 4, dtype=F64))
    assert operations(program) == ["matmul", "add", "softmax"]
    assert result.summary == "2 folded"
    folded = {name: tensor.dtype for name, tensor in program.module.named_buffers()}
    assert set(folded.values()) == {F64}
    assert len(folded) == 2  # the table itself is used no more


def test_a_shape_is_all_that_is_taken_from_an_input():
    program, result = cleaned(Calls(lambda m, x: x + x.new_zeros((6, 6)).cos().triu(1)))
    assert "new_zeros" not in operations(program)
    assert result.details["folded"] == 1


def test_what_depends_on_the_batch_is_not_folded():
    program, result = cleaned(Calls(lambda m, x: x + x.new_ones((x.shape[0], 1, 1, 1))))
    assert "new_ones" in operations(program)
    assert "folded" not in result.details


def test_parameters_stay_trainable_unless_asked_otherwise():
    def forward(m, x):
        return x * (m.weight * 2).exp()

    program, _ = cleaned(Calls(forward, weight=nn.Parameter(torch.randn(6))))
    assert operations(program) == ["mul", "exp", "mul"]
    program, result = cleaned(Calls(forward, weight=nn.Parameter(torch.randn(6))), parameters=True)
    assert operations(program) == ["mul"]
    assert result.summary == "1 folded"
    assert not list(program.module.parameters())


def test_a_frozen_parameter_is_a_parameter():
    weight = nn.Parameter(torch.randn(6), requires_grad=False)
    program, _ = cleaned(Calls(lambda m, x: x * m.weight.exp(), weight=weight))
    assert operations(program) == ["exp", "mul"]


def outer_sum(m, x):
    return x + (m.row[:, None] + m.row[None, :]).exp()


def test_a_constant_does_not_blow_up_memory():
    program, _ = cleaned(Calls(outer_sum, row=torch.randn(6)), constant_mb=6 * 6 * 8 / 2**20 - 1e-6)
    # the views of the row are small enough, their sum is not
    assert operations(program) == ["add", "exp", "add"]
    program, _ = cleaned(Calls(outer_sum, row=torch.randn(6)), constant_mb=6 * 6 * 8 / 2**20)
    assert operations(program) == ["add"]


def test_a_constant_no_larger_than_its_sources_is_folded_whatever_the_limit():
    program, _ = cleaned(Calls(lambda m, x: x + m.row.exp(), row=torch.randn(6)), constant_mb=0.0)
    assert operations(program) == ["add"]


def test_a_broadcast_is_not_stored():
    def forward(m, x):
        return torch.cat([x, m.row.exp().expand(4, 6, 6)[None].expand(x.shape)], 1)

    program, result = cleaned(Calls(forward, row=torch.randn(6)))
    assert result.details["folded"] == 1
    assert max(t.numel() for t in program.module.buffers()) == 6


def test_random_numbers_are_not_constants():
    b = Builder()
    x = b.input("x", 2, 4)
    noise = b.call(aten.rand.default, [4])
    program = b.program(b.call(aten.add.Tensor, x, noise))
    assert not clean(program).changed


def test_a_constant_that_is_returned_is_computed_anew():
    b = Builder()
    x = b.input("x", 2, 4)
    ramp = b.call(aten.arange.default, 4)
    view = b.call(aten.view.default, b.call(aten.mul.Tensor, ramp, 2), [2, 2])
    program = b.program(b.call(aten.relu.default, x), view)
    clean(program)
    program(torch.ones(2, 4))[1].zero_()  # as the user may do
    assert program(torch.ones(2, 4))[1].tolist() == [[0, 2], [4, 6]]


# -- no-ops ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NO_OPS))
def test_a_no_op_goes(name):
    model = nn.Sequential(nn.Conv2d(4, 4, 1), NoOps(name), nn.Flatten(), nn.Linear(144, 2))
    program, _ = cleaned(model)
    expected = ["Conv2d", "flatten", "Linear"]
    if name == "strided":  # a real change of layout, which may be there for speed
        expected[1:1] = ["transpose", "contiguous", "transpose"]
    assert operations(program) == expected


@pytest.mark.parametrize("rule", sorted({rule.name for rule in RULES}))
def test_every_rule_of_the_table_is_tried(rule):
    """All rules fire on one model: none is dead weight."""
    assert EVERYTHING.details[rule] > 0


class Scale(nn.Module):
    """Active in training only, like stochastic depth."""

    def forward(self, x):
        return x * torch.rand(1) if self.training else x


def everything():
    b = Builder(
        dropout=nn.Dropout(), identity=nn.Identity(), pad=nn.ZeroPad2d(0), drop_path=Scale(),
        pool=nn.AdaptiveAvgPool2d(6), head=nn.Linear(6, 2),
    )  # fmt: skip
    b.module.eval()
    x = b.call(aten.relu.default, b.input("x", 2, 4, 6, 6))
    for name in ("dropout", "identity", "pad", "drop_path", "pool"):
        x = b.call(name, x)
    x = b.call(aten.dropout.default, x, 0.5, False)
    x = b.call(aten.to.dtype, x, torch.float32)
    x = b.call(aten.add.Tensor, x, 0)
    x = b.call(aten.cat.default, [x], 1)
    x = b.call(aten.transpose.int, b.call(aten.transpose.int, x, 1, -1), -1, 1)
    x = b.call(aten.view.default, b.call(aten.reshape.default, x, [-1, 4, 36]), [-1, 4, 6, 6])
    x = b.call(aten.clone.default, x)
    program = b.program(b.call("head", x))
    result = clean(program)
    assert operations(program) == ["relu", "Linear"]
    return result


EVERYTHING = everything()


def test_dropout_in_training_mode_stays():
    b = Builder(dropout=nn.Dropout())
    program = b.program(b.call("dropout", b.input("x", 2, 4)))
    program.module.eval()
    program.module.dropout.train()
    assert not Cleanup().run(program, CONTEXT).changed
    b = Builder()
    program = b.program(b.call(aten.dropout.default, b.input("x", 2, 4), 0.5, True))
    assert not clean(program).changed


class Clamp(nn.Module):
    """Reads the training flag, and is nothing like the identity in inference."""

    def forward(self, x):
        return x if self.training else x.clamp(-10, 10)


class Leaf(LeafModule):
    def forward(self, x):
        return x


def test_other_modules_stay():
    b = Builder(clamp=Clamp(), leaf=Leaf(), relu=nn.ReLU())
    x = b.input("x", 2, 4)
    program = b.program(b.call("relu", b.call("leaf", b.call("clamp", x))))
    assert not clean(program).changed


NOT_NO_OPS = {
    "other dtype": lambda b, x: b.call(aten.to.dtype, x, torch.float64),
    "add 1": lambda b, x: b.call(aten.add.Tensor, x, 1),
    "0 with alpha": lambda b, x: b.call(aten.add.Tensor, x, 1, alpha=2),
    "mul 0": lambda b, x: b.call(aten.mul.Tensor, x, 0),
    "shift by pads": lambda b, x: b.call(aten.constant_pad_nd.default, x, [1, -1]),
    "roll": lambda b, x: b.call(aten.roll.default, x, [1], [1]),
    "flip": lambda b, x: b.call(aten.flip.default, x, [1]),
    "one transposition": lambda b, x: b.call(aten.transpose.int, x, 1, 2),
    "another transposition": lambda b, x: b.call(
        aten.transpose.int, b.call(aten.transpose.int, x, 1, 2), 2, 3
    ),
    "a cycle of dimensions": lambda b, x: b.call(
        aten.permute.default, b.call(aten.permute.default, x, [0, 2, 3, 1]), [0, 2, 3, 1]
    ),
    "transpositions that would cancel out in another order": lambda b, x: b.call(
        aten.permute.default,
        b.call(aten.transpose.int, b.call(aten.transpose.int, x, 1, 2), 2, 3),
        [0, 2, 3, 1],
    ),
    "views with a transposition between": lambda b, x: b.call(
        aten.reshape.default,
        b.call(aten.transpose.int, b.call(aten.view.default, x, [-1, 2, 2, 4, 4]), 1, 2),
        [-1, 4, 4, 4],
    ),
    "pool": lambda b, x: b.call(aten.avg_pool2d.default, x, [3, 3], [1, 1], [1, 1]),
    "adaptive pool": lambda b, x: b.call(aten.adaptive_avg_pool2d.default, x, [2, 2]),
    "add a tensor": lambda b, x: b.call(aten.add.Tensor, x, x),
    "cat of two": lambda b, x: b.call(aten.cat.default, [x, x], 1),
    "integer division": lambda b, x: b.call(
        aten.div.Tensor, b.call(aten.to.dtype, x, torch.int64), 1
    ),
}


@pytest.mark.parametrize("name", NOT_NO_OPS)
def test_what_does_something_stays(name):
    b = Builder()
    result = NOT_NO_OPS[name](b, b.call(aten.relu.default, b.input("x", 2, 4, 4, 4)))
    program = b.program(b.call(aten.neg.default, result))
    x = torch.randn(2, 4, 4, 4)
    expected, count = program(x)[0], len(program.nodes)
    clean(program)
    assert len(program.nodes) == count
    assert program(x)[0].dtype == expected.dtype
    assert torch.equal(program(x)[0], expected)


def test_a_chain_of_permutations_cancels_out():
    b = Builder()
    x = b.call(aten.relu.default, b.input("x", 2, 3, 4, 5))
    y = b.call(aten.transpose.int, b.call(aten.transpose.int, x, 1, 2), 2, 3)
    y = b.call(aten.permute.default, y, [0, 3, 1, 2])
    program = b.program(b.call(aten.neg.default, y))
    inputs = torch.randn(2, 3, 4, 5)
    expected = program(inputs)[0]
    assert clean(program).details == {"permute": 1}
    assert torch.equal(program(inputs)[0], expected)


# -- memory and its layout ---------------------------------------------------------------------


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


# -- the pass as a whole -----------------------------------------------------------------------


def test_one_removal_that_enables_another_is_found():
    """Two views of a copy keep it, until merging makes them one."""

    def forward(m, x):
        y = m.conv(x).transpose(2, 3).contiguous()
        return m.head(y.view(x.shape[0], -1) + y.view(x.shape[0], -1))

    model = Calls(forward, conv=nn.Conv2d(4, 4, 1), head=nn.Linear(144, 2))
    program, result = cleaned(model)
    kept = [name for name in operations(program) if name != "sym_size"]
    assert kept == ["Conv2d", "transpose", "reshape", "add", "Linear"]
    assert result.details["merged"] >= 1


def test_the_summary_tells_what_was_done():
    def forward(m, x):
        y = m.dropout(x) + 0
        return torch.relu(y) * torch.relu(y) + torch.arange(6) * 2

    _, result = cleaned(Calls(forward, dropout=nn.Dropout()))
    assert result.summary == "2 no-ops, 1 folded, 1 merged"
    assert result.details == {"dropout": 1, "neutral": 1, "folded": 1, "merged": 1}


@pytest.mark.parametrize("check", check_pass(Cleanup()), ids=str)
def test_conformance(check):
    check()


def test_attention_that_drops_weights_in_training_becomes_the_operator() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    program = capture_program(layer, (x,), {})
    assert list(program.find(ScaledDotProductAttention))
    before = program(x)
    Cleanup().run(program, CONTEXT)
    program.verify()
    assert not list(program.find(ScaledDotProductAttention))
    assert list(program.find(aten.scaled_dot_product_attention.default))
    torch.testing.assert_close(program(x), before, rtol=1e-12, atol=1e-12)
