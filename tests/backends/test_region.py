"""Cutting regions out of programs and splicing lowered modules in."""

import operator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxopt.backends import BackendInfo, LoweredModule, cut_region, splice, whole_region
from fxopt.backends.boundary import is_operation
from fxopt.cost import find_target
from fxopt.errors import BackendError
from fxopt.frontend import capture_program
from fxopt.ir import Program
from fxopt.pipeline.assignment import Assignment, Share
from fxopt.testing.strategies import generated_cases
from fxopt_eager import Eager
from tests.building import Builder, aten
from tests.random_models import on_random_models

CPU = find_target("cpu")


@dataclass(frozen=True)
class Lowered(Eager):
    """Eager code, but lowered: behind the boundary that any other runtime has."""

    info = BackendInfo("lowered", ("cpu",))


def replaced(program, *names_of_regions):
    """A copy of ``program`` whose regions, sets of names, run as lowered code."""
    shares = tuple(Share(Lowered(), frozenset(names)) for names in names_of_regions)
    spliced = Assignment(shares).applied(program, CPU)
    spliced.verify()
    calls = list(spliced.find(LoweredModule))
    assert len(calls) == len(names_of_regions)
    for call in calls:
        spliced.leaf(call)._program.verify()
    return spliced


def named(program, *names):
    return [node for node in program.nodes if node.name in names]


class Watch(torch.fx.Interpreter):
    """Runs a program and checks the values that its nodes are said to have."""

    def run_node(self, node):
        value = super().run_node(node)
        if node.op != "output":
            self.check(node.meta["val"], value)
        return value

    def check(self, expected, value):
        if isinstance(value, torch.Tensor):
            assert expected.dtype is value.dtype
            assert len(expected.shape) == value.dim()
            pairs = zip(expected.shape, value.shape, strict=True)
            assert all(isinstance(e, torch.SymInt) or e == given for e, given in pairs)
        elif isinstance(value, (tuple, list)):
            for one, other in zip(expected, value, strict=True):
                self.check(one, other)


def same(program, spliced, *inputs):
    """Whether both give the same numbers, to the last bit; the metadata has to be right, too."""
    with torch.no_grad():
        expected, found = program(*inputs), Watch(spliced.module).run(*inputs)
        assert all(torch.equal(a, b) for a, b in zip(spliced(*inputs), found, strict=True))
    return all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def any_order(draw, program):
    """The nodes in some topological order, not just that of the program."""
    waiting, done, order = program.nodes, set(), []
    while waiting:
        ready = [node for node in waiting[:6] if done.issuperset(node.all_input_nodes)]
        node = draw(st.sampled_from(ready), label="next")
        waiting.remove(node)
        done.add(node)
        order.append(node)
    return [node for node in order if is_operation(node)]


@st.composite
def split_cases(draw):
    """A case, and names for one to three regions of it, one after the other in some order."""
    case = draw(generated_cases())
    order = any_order(draw, case.program)
    count = draw(st.integers(1, 3), label="regions")
    size = len(order)
    cuts = sorted(draw(st.lists(st.integers(0, size), min_size=2 * count, max_size=2 * count)))
    pairs = zip(cuts[::2], cuts[1::2], strict=True)
    regions = [[node.name for node in order[start:end]] for start, end in pairs]
    return case, [names for names in regions if names]


def mentions_items_alone(program, names):
    """Whether a region would be empty: items go where their tuple is made."""
    return all(node.target is operator.getitem for node in named(program, *names))


@on_random_models(20)
@given(split_cases())
def test_convex_parts_of_generated_programs_can_be_replaced(given_case):
    case, regions = given_case
    regions = [names for names in regions if not mentions_items_alone(case.program, names)]
    before = case.program.fingerprint()
    spliced = replaced(case.program, *regions)
    for flat in case.inputs:
        assert same(case.program, spliced, *flat)
    assert case.program.fingerprint() == before


@pytest.fixture
def crossing():
    """Users of the region {a, c} stand before its last node, and its inputs after its first."""
    b = Builder()
    x, y = b.input("x", 2, 4), b.input("y", 2, 4)
    a = b.call(aten.relu.default, x)
    early = b.call(aten.neg.default, a)
    other = b.call(aten.exp.default, y)
    c = b.call(aten.add.Tensor, a, other)
    later = b.call(aten.mul.Tensor, early, c)
    return b.program(later, early, c), (a.name, c.name)


def test_order_is_restored_where_users_stand_before_inputs(crossing):
    program, names = crossing
    spliced = replaced(program, names)
    for batch in (2, 5):
        assert same(program, spliced, torch.randn(batch, 4), torch.randn(batch, 4))
    order = [node.name for node in spliced.nodes]
    assert order.index("exp_default") < order.index("fxopt_region") < order.index("neg_default")


def test_what_is_not_convex_is_refused(crossing):
    program, _ = crossing
    with pytest.raises(BackendError, match="%neg_default is computed from the region"):
        cut_region(program, named(program, "relu_default", "mul_tensor"))


def test_two_regions_that_need_each_other_are_refused():
    b = Builder()
    x = b.input("x", 2, 4)
    first, second = b.call(aten.relu.default, x), b.call(aten.exp.default, x)
    third, fourth = b.call(aten.neg.default, second), b.call(aten.sin.default, first)
    program = b.program(third, fourth)
    one, other = {first.name, third.name}, {second.name, fourth.name}
    replaced(program, one)  # each on its own is fine
    replaced(program, other)
    with pytest.raises(BackendError, match="is an input of it"):
        replaced(program, one, other)


def test_sizes_are_computed_inside_again():
    b = Builder()
    x = b.input("x", 2, 3, 4)
    size = b.call(aten.sym_size.int, x, 0)
    double = b.call(operator.mul, size, 2)
    relu = b.call(aten.relu.default, x)
    rows = b.call(aten.reshape.default, relu, [double, 6])
    ones = b.call(aten.full.default, [double, 6], 1.5)
    program = b.program(b.call(aten.add.Tensor, rows, ones))
    names = {rows.name, ones.name, program.output.args[0][0].name}
    region = cut_region(program, named(program, *names))
    assert region.inputs == (relu,)  # neither the size nor what it is of
    inside = [node for node in region.program.nodes if node.target is aten.sym_size.int]
    assert [node.args[0].name for node in inside] == [relu.name]
    spliced = replaced(program, names)
    assert not list(spliced.find(aten.sym_size.int, operator.mul))
    for batch in (2, 3):
        assert same(program, spliced, torch.randn(batch, 3, 4))


def test_sizes_that_others_need_are_read_without_the_region():
    b = Builder()
    x = b.input("x", 2, 6)
    inner = b.call(aten.relu.default, x)
    size = b.call(aten.sym_size.int, inner, 0)
    last = b.call(aten.neg.default, inner)
    outside = b.call(aten.full.default, [size, 6], 2.0)
    program = b.program(b.call(aten.add.Tensor, last, outside))
    region = cut_region(program, [inner, last])
    assert region.outputs == (last,)
    spliced = replaced(program, {inner.name, last.name})
    (left,) = spliced.find(aten.sym_size.int)
    assert left.args[0].name == "x"
    for batch in (2, 3):
        assert same(program, spliced, torch.randn(batch, 6))


class Selected(nn.Module):
    def forward(self, x):
        rows = (x.relu() > 0.1).nonzero()
        return rows, torch.zeros(rows.shape[0] + 1, dtype=x.dtype)


@pytest.mark.parametrize("take", [("relu", "gt", "nonzero"), ("zeros",), ("relu",)])
def test_sizes_that_depend_on_the_data(take):
    x = torch.randn(3, 4, dtype=torch.float64)
    program = capture_program(Selected(), (x,), {})
    spliced = replaced(program, set(take))
    for batch in (3, 5):
        assert same(program, spliced, torch.randn(batch, 4, dtype=torch.float64))


def test_attributes_are_read_on_both_sides():
    b = Builder()
    x = b.input("x", 2, 4)
    scale = b.attribute("scale", nn.Parameter(torch.rand(4)))
    inside = b.call(aten.mul.Tensor, x, scale)
    outside = b.call(aten.add.Tensor, inside, scale)
    program = b.program(outside)
    region = cut_region(program, [scale, inside])
    assert [node.name for node in region.inputs] == ["x"]
    assert region.outputs == (inside,)
    assert region.program.module.scale is program.module.scale
    spliced = replaced(program, {scale.name, inside.name})
    assert spliced.module.scale is program.module.scale
    assert same(program, spliced, torch.randn(3, 4))
    everything = replaced(program, {inside.name, outside.name})
    assert not hasattr(everything.module, "scale")
    assert same(program, everything, torch.randn(3, 4))


def test_a_layer_of_which_the_rest_reads_one_weight_stays_whole():
    b = Builder(block__fc=nn.Linear(4, 4))
    x = b.input("x", 2, 4)
    call = b.call("block.fc", x)
    weight = b.attribute("block.fc.weight")
    program = b.program(b.call(aten.mm.default, call, weight))
    layer = program.module.get_submodule("block.fc")
    spliced = replaced(program, {call.name})
    assert layer.bias is not None
    assert spliced.module.get_parameter("block.fc.weight") is layer.weight
    assert not hasattr(spliced.module.get_submodule("block.fc"), "bias")
    assert same(program, spliced, torch.randn(3, 4))


def test_a_layer_that_is_called_inside_and_outside_is_shared():
    b = Builder(fc=nn.Linear(4, 4))
    first = b.call("fc", b.input("x", 2, 4))
    program = b.program(b.call("fc", b.call(aten.relu.default, first)))
    spliced = replaced(program, {"fc", "relu_default"})
    (inner,) = spliced.find(LoweredModule)
    source = spliced.leaf(inner).fxopt_source
    assert source.fc is spliced.module.fc is program.module.fc
    assert same(program, spliced, torch.randn(3, 4))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 4, batch_first=True)

    def forward(self, x):
        y, (h, _) = self.lstm(x.relu())
        first, second, third = y.split([1, 2, 1], dim=2)
        return (first * third).exp(), second.neg(), h.transpose(0, 1)


@pytest.mark.parametrize("seed", range(8))
def test_items_stay_with_their_tuple(seed):
    torch.manual_seed(0)
    model, x = Recurrent().double().eval(), torch.randn(2, 5, 4, dtype=torch.float64)
    program = capture_program(model, (x,), {})
    order = [node.name for node in program.nodes if is_operation(node)]
    start = seed % 4
    end = len(order) - seed // 2
    spliced = replaced(program, set(order[start:end]))
    for batch in (2, 3):
        assert same(program, spliced, torch.randn(batch, 5, 4, dtype=torch.float64))


def test_items_alone_are_no_region():
    b = Builder()
    parts = b.call(aten.split.Tensor, b.input("x", 2, 4), 2, 1)
    item = b.call(operator.getitem, parts, 1)
    program = b.program(b.call(aten.relu.default, item))
    assert cut_region(program, [item]).nodes == ()
    assert cut_region(program, [parts]).nodes == (parts, item)
    with pytest.raises(BackendError, match="nothing to compute"):
        Assignment((Share(Lowered(), frozenset({item.name})),)).applied(program, CPU)


def test_inputs_that_are_no_tensors_become_constants():
    class Scaled(nn.Module):
        def forward(self, x, factor, flag):
            return x * factor if flag else x

    program = capture_program(Scaled(), (torch.randn(2, 4), 3, True), {})
    region = whole_region(program)
    assert [node.name for node in region.inputs] == ["x"]
    spliced = replaced(program, {node.name for node in program.nodes})
    assert same(program, spliced, torch.randn(3, 4), 3, True)


def test_outputs_that_are_inputs_or_given_twice():
    b = Builder(fc=nn.Linear(4, 4))
    x, y = b.input("x", 2, 4), b.input("y", 2, 4)
    fc = b.call("fc", x)
    total = b.call(aten.add.Tensor, fc, y)
    program = b.program(y, fc, total, fc, x)
    for names in ({"fc"}, {total.name}, {"fc", total.name}):
        spliced = replaced(program, names)
        assert same(program, spliced, torch.randn(3, 4), torch.randn(3, 4))


def test_a_region_can_be_cut_and_spliced_twice():
    b = Builder(fc=nn.Linear(4, 4))
    program = b.program(b.call(aten.relu.default, b.call("fc", b.input("x", 2, 4))))
    once = replaced(program, {"fc"})
    (call,) = once.find(LoweredModule)
    (item,) = once.find(operator.getitem)
    region = cut_region(once, [call, item])
    splice(once, region, LoweredModule(region.program, Lowered(), CPU), "outer")
    once.verify()
    assert same(program, once, torch.randn(3, 4))
    assert same(program, replaced(program, {"fc"}), torch.randn(3, 4))


def test_a_program_that_computes_nothing_has_no_region():
    b = Builder()
    assert whole_region(b.program(b.input("x", 2, 4))) is None
    b = Builder()
    b.input("x", 2, 4)
    assert whole_region(b.program(b.attribute("scale", torch.ones(2)))) is None


def test_provenance_is_kept(crossing):
    program, names = crossing
    sources = {node.name: node.meta["source"] for node in program.nodes if is_operation(node)}
    spliced = replaced(program, names)
    items = list(spliced.find(operator.getitem))
    assert [item.meta["source"] for item in items] == [sources[name] for name in names]
    assert isinstance(spliced, Program)
