"""Mixing runtimes: cutting a program into a chain, and the cheapest backend for each segment."""

import itertools
import math
import operator
import sys
import time
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt.backends import Backend, BackendInfo, LoweredModule
from fxopt.backends.boundary import is_free, is_operation, is_tuple, size_of_input
from fxopt.cost import find_target, multiply_adds
from fxopt.ir import LeafModule
from fxopt.pipeline.assignment import Assignment, Share
from fxopt.pipeline.lowering import LoweringJob, exact_version, lower
from fxopt.pipeline.partition.chain import balanced_cuts, cut_points, segments
from fxopt.pipeline.partition.mix import MixingJob, Mixture, Rival, find_mixture
from fxopt.pipeline.partition.plan import cheapest_chain, seam_savings
from fxopt.testing.strategies import generated_cases
from fxopt_eager import Eager
from fxopt_eager.backend import EagerLowering
from tests.building import Builder, aten
from tests.random_models import on_random_models

CPU = find_target("cpu")
GENERATED = on_random_models(12)


@dataclass(frozen=True)
class Lowered(Eager):
    info = BackendInfo("lowered", ("cpu",))


# -- the plan --------------------------------------------------------------------------------------


@st.composite
def tables(draw):
    count, backends = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    time_of = st.one_of(st.integers(0, 50), st.just(math.inf))
    row = st.lists(time_of, min_size=backends, max_size=backends)
    saved = st.lists(st.integers(0, 10), min_size=backends, max_size=backends)
    times = draw(st.lists(row, min_size=count, max_size=count))
    return times, draw(st.lists(saved, min_size=count - 1, max_size=count - 1))


def cost_of(path, times, savings):
    total = sum(times[s][b] for s, b in enumerate(path))
    pairs = enumerate(itertools.pairwise(path))
    return total - sum(savings[s][a] for s, (a, b) in pairs if a == b)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(tables())
def test_the_cheapest_chain_is_that_of_brute_force(given_tables):
    times, savings = given_tables
    cost, path = cheapest_chain(times, savings)
    every = itertools.product(range(len(times[0])), repeat=len(times))
    assert cost == min(cost_of(other, times, savings) for other in every)
    assert cost == cost_of(path, times, savings)


def test_staying_on_one_backend_costs_what_was_measured():
    times = [[3.0, 5.0], [4.0, 1.0], [2.0, 9.0]]
    savings = seam_savings(times, [7.5, 20.0], [1.0, 3.0])
    assert savings == [[0.375, 0.0], [1.125, 0.0]]  # apart, the second one is no slower
    assert cost_of((0, 0, 0), times, savings) == 7.5
    assert cheapest_chain(times, savings) == (6.0, [0, 1, 0])


def test_a_backend_that_fails_somewhere_has_no_seams():
    assert seam_savings([[3.0, math.inf], [4.0, 1.0]], [6.0, 2.0], [1.0]) == [[1.0, 0.0]]


# -- the chain -------------------------------------------------------------------------------------


def crossing(program, operations, point):
    """The values that are made before a point and needed behind it, by their definition."""
    before, behind = operations[:point], set(operations[point:])

    def reaches(node):
        return any(
            user in behind or (is_free(user) and size_of_input(user) is None and reaches(user))
            for user in node.users
        )

    return [node for node in before if reaches(node)]


@GENERATED
@given(generated_cases())
def test_cut_points_are_where_few_tensors_cross(case):
    operations = [node for node in case.program.nodes if is_operation(node)]
    expected = {}
    for point in range(1, len(operations)):
        values = crossing(case.program, operations, point)
        if len(values) <= 2 and not any(map(is_tuple, values)):
            expected[point] = len(values)
    assert cut_points(case.program) == expected


def test_inputs_and_sizes_of_inputs_do_not_cross_and_tuples_must_not():
    b = Builder(lstm=nn.LSTM(4, 4))
    x, mask = b.input("x", 2, 3, 4), b.input("mask", 2, 3, 4)
    first = b.call(aten.relu.default, x)
    size = b.call(aten.sym_size.int, first, 0)
    lstm = b.call("lstm", b.call(aten.add.Tensor, first, mask))
    item = b.call(operator.getitem, lstm, 0)
    total = b.call(aten.add.Tensor, item, mask)
    last = b.call(aten.reshape.default, total, [size, 12])
    # relu | add | lstm, item | add | reshape
    assert cut_points(b.program(last, first)) == {1: 1, 2: 1, 4: 1, 5: 1}


@st.composite
def weighted(draw):
    weights = draw(st.lists(st.integers(0, 30), min_size=1, max_size=9))
    points = draw(st.sets(st.integers(1, len(weights) - 1))) if len(weights) > 1 else set()
    return weights, sorted(points), draw(st.integers(1, 4))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(weighted())
def test_balanced_cuts_are_those_of_brute_force(drawn):
    weights, points, at_most = drawn
    least = 0.25 * sum(weights) / at_most

    def parts(cuts):
        return [sum(weights[a:b]) for a, b in itertools.pairwise([0, *cuts, len(weights)])]

    ways = [c for n in range(at_most) for c in itertools.combinations(points, n)]
    allowed = [way for way in ways if not way or min(parts(way)) >= least]
    best = min(sum(part**2 for part in parts(way)) for way in allowed)
    found = balanced_cuts(weights, points, at_most)
    assert tuple(found) in allowed
    assert sum(part**2 for part in parts(found)) == best


@GENERATED
@given(generated_cases(), st.data())
def test_segments_can_run_on_different_backends(case, data):
    program = case.program
    chain = segments(program, multiply_adds(program), at_most=4)
    assert [n for segment in chain for n in segment] == [
        n for n in program.nodes if is_operation(n)
    ]
    assert len(chain) <= 4
    chosen = [s for s in chain if data.draw(st.booleans(), label="lowered")]
    shares = tuple(Share(Lowered(), frozenset(node.name for node in s)) for s in chosen)
    spliced = Assignment(shares).applied(program, CPU)
    spliced.verify()
    assert len(list(spliced.find(LoweredModule))) == len(chosen)
    for flat, expected in zip(case.inputs, case.outputs(), strict=True):
        with torch.no_grad():
            pairs = zip(spliced(*flat), expected, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_cuts_fall_in_front_of_heavy_operations_where_least_crosses():
    b = Builder(one=nn.Linear(8, 8), norm=nn.LayerNorm(8), two=nn.Linear(8, 8))
    x = b.call(aten.relu.default, b.call("one", b.input("x", 2, 8)))
    norm = b.call("norm", x)  # behind it two tensors would cross, in front of it one
    program = b.program(b.call(aten.add.Tensor, b.call("two", norm), x))
    names = [[node.name for node in s] for s in segments(program, multiply_adds(program))]
    assert names == [["one", "relu_default"], ["norm", "two", "add_tensor"]]


def test_cuts_that_one_tensor_crosses_are_preferred():
    layers = {f"fc{i}": nn.Linear(8, 8) for i in range(8)}
    b = Builder(**layers)
    x = b.call(aten.sin.default, b.input("x", 2, 8))
    for i in range(0, 8, 2):
        inner = b.call(aten.relu.default, b.call(f"fc{i}", x))
        x = b.call(aten.add.Tensor, b.call(f"fc{i + 1}", inner), x)
    program = b.program(x)
    assert cut_points(program)[2] == 2  # fc0's result, and what is added to the block's
    chain = segments(program, multiply_adds(program))
    assert [segment[0].name for segment in chain] == ["sin_default", "fc2", "fc4", "fc6"]


def test_without_arithmetic_there_is_one_segment():
    b = Builder()
    x = b.call(aten.relu.default, b.input("x", 2, 8))
    program = b.program(b.call(aten.sin.default, x))
    assert len(segments(program, multiply_adds(program))) == 1


# -- measuring -------------------------------------------------------------------------------------


class Nap(LeafModule):
    """Takes 10 ms where it runs as it stands."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.seconds = kind, 0.01

    def forward(self, x):
        time.sleep(self.seconds)
        return x.clone()


@dataclass(frozen=True)
class Fast(Backend):
    """Leaves out naps of one kind. Where there is but one of another kind, it fails."""

    info = BackendInfo("fast", ("cpu",))
    at: str = ""
    fails_at: str = ""

    @property
    def label(self):
        return f"fast at {self.at}"

    def lower(self, program, inputs, target):
        program = program.clone()
        naps = [program.leaf(node) for node in program.find(Nap)]
        if [nap.kind for nap in naps] == [self.fails_at]:
            raise KeyError("no such kernel")
        for nap in naps:
            nap.seconds = 0 if nap.kind == self.at else nap.seconds
        return EagerLowering(program)


FIRST, SECOND = Fast("first"), Fast("second")


@pytest.fixture
def halves(monkeypatch):
    """Four layers, each with a nap behind it, of one kind in the first half and then another."""
    # nothing here has worker threads that spin after a call
    monkeypatch.setattr(sys.modules["fxopt.cost.measure"], "_PAUSE_SECONDS", 0.01)
    torch.manual_seed(0)
    naps = {f"nap{i}": Nap("first" if i < 2 else "second") for i in range(4)}
    b = Builder(**{f"fc{i}": nn.Linear(4, 4) for i in range(4)}, **naps)
    x = b.input("x", 2, 4)
    for i in range(4):
        x = b.call(f"nap{i}", b.call(f"fc{i}", x))
    return b.program(x), torch.randn(2, 4)


def mixing(program, x, *backends, **more):
    def whole(backend):
        module = Assignment((Share(backend),)).applied(program, CPU).module
        return Rival(backend, lambda: module(x))

    return MixingJob(CPU, [x], [whole(backend) for backend in backends], **more)


def test_each_segment_goes_where_it_is_fastest(halves):
    program, x = halves
    found = find_mixture(program, mixing(program, x, SECOND, FIRST))
    assert found.promising
    assert found.predicted < 10 < 20 <= found.single
    assert found.pieces == (
        (FIRST, {"fc0", "nap0", "fc1", "nap1"}),
        (SECOND, {"fc2", "nap2", "fc3", "nap3"}),
    )


def test_what_fails_on_a_segment_is_not_used_there(halves):
    program, x = halves
    lines = []
    picky = Fast("second", fails_at="second")
    found = find_mixture(program, mixing(program, x, FIRST, picky, progress=lines.append))
    assert any("fails with fast at second" in line and "no such kernel" in line for line in lines)
    assert [backend for backend, _ in found.pieces] == [FIRST]
    assert not found.promising


def test_there_has_to_be_a_choice_and_time_for_it(halves):
    program, x = halves
    assert find_mixture(program, mixing(program, x, FIRST)) is None
    late = mixing(program, x, FIRST, SECOND, deadline=time.monotonic() - 1)
    assert find_mixture(program, late) is None
    hurried = mixing(program, x, FIRST, SECOND, deadline=time.monotonic() + 1)
    assert find_mixture(program, hurried) is None  # building is quick, measuring is not
    b = Builder(fc=nn.Linear(4, 4))
    single = b.program(b.call("fc", b.input("x", 2, 4)))
    assert find_mixture(single, mixing(single, torch.randn(2, 4), FIRST, SECOND)) is None


@pytest.mark.parametrize(
    ("pieces", "predicted", "promising"),
    [(2, 9.0, True), (2, 9.6, False), (2, 11.0, False), (1, 9.0, False)],
)
def test_only_what_promises_more_than_noise_is_raced(pieces, predicted, promising):
    mixture = Mixture(((FIRST, frozenset("a")),) * pieces, predicted, 10.0)
    assert mixture.promising == promising


@pytest.mark.parametrize("mix", [True, False])
def test_a_mixture_wins_the_race_where_it_is_asked_for(halves, mix):
    program, x = halves
    examples = [[x], [torch.randn(3, 4)]]
    reference = [program(*flat) for flat in examples]
    job = LoweringJob("net", CPU, [FIRST, SECOND], examples, lambda: time.sleep(0.05), mix=mix)
    lowered = lower([exact_version(program, reference)], job)
    chosen = lowered.record.chosen
    mixtures = [r for r in lowered.record.candidates if "+" in r.backend]
    assert [record.backend for record in mixtures] == ["fast at first + fast at second"] * mix
    if mix:
        assert chosen == mixtures[0]
        assert chosen.milliseconds < 10
        assert chosen.placed == (
            "fast at first 4 operations: %fc0 to %nap1",
            "fast at second 4 operations: %fc2 to %nap3",
        )
        assert len(lowered.module.lowered()) == 2
    for flat, expected in zip(examples, reference, strict=True):
        torch.testing.assert_close(lowered.module(*flat), expected[0])
