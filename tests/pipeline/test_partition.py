"""Partition by support: convex parts of what a backend takes, and their place in the report."""

import operator
import time
from dataclasses import dataclass

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt.backends import BackendInfo, LoweredModule, cut_region
from fxopt.cost import find_target, multiply_adds
from fxopt.frontend import capture_program
from fxopt.ir import ScaledDotProductAttention
from fxopt.pipeline.assignment import Assignment, Share
from fxopt.pipeline.lowering import LoweringJob, exact_version, lower
from fxopt.pipeline.lowering.offers import offers
from fxopt.pipeline.partition import partition
from fxopt.pipeline.partition.operations import operation_graph
from fxopt.pipeline.partition.parts import convex_parts
from fxopt.report import CandidateRecord, RegionRecord, Report
from fxopt.report.text import render_text
from fxopt_eager import Eager
from fxopt_openvino import OpenVINO
from tests.building import Builder, aten

CPU = find_target("cpu")


@dataclass(frozen=True)
class Picky(Eager):
    """Refuses the operators that it is told to."""

    info = BackendInfo("picky", ("cpu",))
    refused: tuple = ()

    def refuses(self, program, node, target):
        return "is refused" if node.target in self.refused else None


# -- parts of a graph ------------------------------------------------------------------------------


@st.composite
def graphs(draw):
    """A graph without cycles, and some of its nodes."""
    count = draw(st.integers(1, 10))
    graph = nx.DiGraph()
    graph.add_nodes_from(range(count))
    pairs = [(a, b) for b in range(count) for a in range(b)]
    graph.add_edges_from(draw(st.lists(st.sampled_from(pairs), max_size=18)) if pairs else [])
    return graph, draw(st.sets(st.integers(0, count - 1)))


def contracted(graph, parts):
    owner = {node: node for node in graph} | {n: f"p{i}" for i, p in enumerate(parts) for n in p}
    whole = nx.DiGraph((owner[a], owner[b]) for a, b in graph.edges if owner[a] != owner[b])
    whole.add_nodes_from(owner.values())
    return whole


def is_convex(graph, part):
    after = {d for n in part for d in nx.descendants(graph, n)} - part
    before = {a for n in part for a in nx.ancestors(graph, n)} - part
    return not after & before


@settings(max_examples=200, deadline=None, derandomize=True)
@given(graphs())
def test_parts_are_convex_and_as_large_as_can_be(given_graph):
    graph, refused = given_graph
    parts = convex_parts(graph, refused)
    assert sorted(node for part in parts for node in part) == sorted(set(graph) - refused)
    assert all(is_convex(graph, part) for part in parts)
    assert nx.is_directed_acyclic_graph(contracted(graph, parts))
    for first in parts:
        for second in parts:
            if any(graph.has_edge(a, b) for a in first for b in second) and first is not second:
                rest = [part for part in parts if part is not first and part is not second]
                joined = contracted(graph, [*rest, first | second])
                assert not nx.is_directed_acyclic_graph(joined)


def test_branches_around_a_refused_node_stay_together():
    graph = nx.DiGraph([("a", "no"), ("a", "b"), ("no", "c"), ("b", "c"), ("c", "d"), ("x", "b")])
    assert convex_parts(graph, {"no"}) == [{"a", "b", "x"}, {"c", "d"}]
    assert convex_parts(graph, set()) == [set(graph)]
    assert convex_parts(graph, set(graph)) == []


# -- operations of a program -----------------------------------------------------------------------


def test_operations_need_each_other_through_items_but_not_through_sizes_of_inputs():
    b = Builder()
    x = b.input("x", 2, 6)
    relu = b.call(aten.relu.default, x)
    size = b.call(aten.sym_size.int, relu, 0)
    ones = b.call(aten.full.default, [size, 3], 1.0)
    parts = b.call(aten.split.Tensor, relu, 3, 1)
    first = b.call(operator.getitem, parts, 0)
    total = b.call(aten.add.Tensor, first, ones)
    graph = operation_graph(b.program(total))
    assert list(graph) == [relu, ones, parts, total]
    assert set(graph.edges) == {(relu, parts), (parts, total), (ones, total)}


class Arithmetic(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.fc = nn.Linear(10, 7)

    def forward(self, x):
        y = self.up(self.conv(x)).relu().flatten(2).transpose(1, 2)
        y = self.fc(self.lstm(y)[0])
        return y @ y.transpose(1, 2)


def test_arithmetic_is_counted_at_the_sizes_of_the_examples():
    program = capture_program(Arithmetic().eval(), (torch.randn(3, 4, 6, 5),), {})
    counts = {node.name: n for node, n in multiply_adds(program).items() if n}
    steps = 3 * (4 * 2) * (3 * 2)  # samples and pixels behind the convolutions
    assert counts == {
        "conv": 3 * 4 * 3 * 8 * 2 * 9,
        "up": 3 * 4 * 3 * 8 * 6 * 4,
        "lstm_1": steps * 2 * 4 * 5 * ((6 + 5) + (10 + 5)),
        "fc": steps * 10 * 7,
        "matmul": steps * 7 * (4 * 2) * (3 * 2),
    }
    assert isinstance(program.inputs[0].meta["val"].shape[0], torch.SymInt)


def test_arithmetic_of_attention_is_that_of_its_two_products():
    b = Builder(attend=ScaledDotProductAttention(0.0))
    q, k = b.input("q", 2, 4, 10, 8), b.input("k", 2, 4, 12, 8)
    program = b.program(b.call("attend", q, k, k))
    assert sum(multiply_adds(program).values()) == 2 * (2 * 4 * 10 * 12 * 8)


# -- parts of a program ----------------------------------------------------------------------------


def chain(*between):
    """Three linear layers, with something between each and the next."""
    b = Builder(one=nn.Linear(4, 4), two=nn.Linear(4, 4), three=nn.Linear(4, 4))
    x = b.input("x", 2, 4)
    for name, target in zip(("one", "two", "three"), (*between, None), strict=True):
        x = b.call(name, x)
        x = b.call(target, x) if target is not None else x
    return b.program(x)


def test_what_is_refused_stays_outside():
    program = chain(aten.relu.default, aten.sin.default)
    found = partition(program, Picky(refused=(aten.sin.default,)), CPU)
    assert found.parts == (frozenset({"one", "relu_default", "two"}), frozenset({"three"}))
    assert found.outside == ("aten.sin is refused",)
    shares = tuple(Share(Picky(), part) for part in found.parts)
    lowered = Assignment(shares).applied(program, CPU)
    lowered.verify()
    assert len(list(lowered.find(LoweredModule))) == 2
    for batch in (2, 3):
        x = torch.randn(batch, 4)
        assert torch.equal(lowered(x)[0], program(x)[0])


def test_parts_without_heavy_arithmetic_stay_outside():
    b = Builder(fc=nn.Linear(4, 4))
    x = b.call(aten.sin.default, b.call(aten.relu.default, b.input("x", 2, 4)))
    program = b.program(b.call("fc", x))
    found = partition(program, Picky(refused=(aten.sin.default,)), CPU)
    assert found.parts == ({"fc"},)
    assert found.outside == (
        "aten.relu has too little arithmetic around it",
        "aten.sin is refused",
    )


def test_a_part_that_the_backend_refuses_as_a_whole_stays_outside():
    b = Builder(fc=nn.Linear(4, 4))
    constant = b.attribute("constant", torch.ones(4, 4))
    table = b.call(aten.mm.default, constant, constant)  # without inputs
    noise = b.call(aten.rand_like.default, b.input("x", 2, 4))
    program = b.program(b.call("fc", noise), b.call(aten.bernoulli.default, table))
    found = partition(program, OpenVINO(), CPU)
    assert found.parts == ({"fc"},)
    assert "aten.mm the program has no inputs" in found.outside


def test_tuples_stay_with_their_items():
    b = Builder(fc=nn.Linear(4, 4), lstm=nn.LSTM(4, 4))
    x = b.call("fc", b.input("x", 2, 3, 4))
    noise = b.call(aten.rand_like.default, x)
    lstm = b.call("lstm", noise)
    program = b.program(b.call(aten.relu.default, b.call(operator.getitem, lstm, 0)))
    found = partition(program, Picky(refused=(aten.rand_like.default,)), CPU)
    assert found.parts == ({"fc"}, {"lstm", "getitem", "relu_default"})
    again = partition(program, Picky(refused=("lstm",)), CPU)
    assert again.parts == ({"fc", "rand_like_default"},)


@pytest.mark.parametrize("backend", [Picky(), Picky(refused=(aten.cos.default,))])
def test_where_nothing_is_refused_there_is_nothing_to_cut(backend):
    assert partition(chain(aten.relu.default, aten.sin.default), backend, CPU).parts == ()


def test_openvino_keeps_off_float64_and_what_comes_of_it():
    b = Builder(one=nn.Linear(4, 4), two=nn.Linear(4, 4).double(), three=nn.Linear(4, 4))
    wide = b.call(aten._to_copy.default, b.call("one", b.input("x", 2, 4)), dtype=torch.float64)
    narrow = b.call(aten._to_copy.default, b.call("two", wide), dtype=torch.float32)
    program = b.program(b.call("three", narrow))
    assert "float64" in OpenVINO().unsupported(program, CPU)
    found = partition(program, OpenVINO(), CPU)
    assert found.parts == ({"one"}, {"three"})
    assert len(found.outside) == 3
    for part in found.parts:
        region = cut_region(program, [node for node in program.nodes if node.name in part])
        assert OpenVINO().unsupported(region.program, CPU) is None


# -- in the race and in the report -----------------------------------------------------------------


class Noisy(nn.Module):
    """Adds noise that is too small to matter, between two convolutions."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        x = self.one(x).relu()
        return self.two(x + 0 * torch.rand_like(x)).relu().mean((2, 3))


def test_a_backend_takes_part_in_the_race_with_what_it_supports():
    torch.manual_seed(0)
    model, x = Noisy().eval(), torch.randn(2, 3, 16, 16)
    program = capture_program(model, (x,), {})
    examples = [[x], [torch.randn(3, 3, 16, 16)]]
    version = exact_version(program, [program(*flat) for flat in examples])
    job = LoweringJob("whole net", CPU, [OpenVINO()], examples, lambda: time.sleep(0.1))
    lowered = lower([version], job)
    record = next(r for r in lowered.record.candidates if r.backend == "openvino")
    assert record.reason == ""
    assert record.error is not None
    assert record.milliseconds is not None
    assert [line.partition(":")[0] for line in record.placed] == [
        "openvino 2 operations",
        "openvino 5 operations",
    ]
    assert record.outside == ("aten.rand_like draws random numbers",)
    with torch.no_grad():
        torch.testing.assert_close(lowered.module(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_share_is_supported_where_the_program_is_not():
    program = capture_program(Noisy().eval(), (torch.randn(2, 3, 16, 16),), {})
    assert "random" in Share(OpenVINO()).unsupported(program, CPU)
    assert Share(OpenVINO(), frozenset({"one", "relu"})).unsupported(program, CPU) is None
    assert "random" in Share(OpenVINO(), frozenset({"rand_like"})).unsupported(program, CPU)


def test_a_backend_without_a_part_worth_its_while_says_why_it_is_out():
    b = Builder()
    noise = b.call(aten.rand_like.default, b.input("x", 2, 4))
    program = b.program(b.call(aten.relu.default, noise))
    version = exact_version(program, [program(torch.randn(2, 4))])
    job = LoweringJob("whole net", CPU, [OpenVINO()], [[torch.randn(2, 4)]], lambda: None)
    (candidate,) = offers([version], job)
    assert candidate.record.reason == "%rand_like_default draws random numbers"
    assert candidate.record.placed == candidate.record.outside == ()


def test_the_report_shows_regions_and_what_stayed_outside():
    chosen = CandidateRecord(
        "openvino",
        placed=("openvino 2 operations: %one to %relu", "openvino 3 operations: %two to %mean"),
        outside=("aten.rand draws random numbers", "aten.rand draws random numbers"),
    )
    region = RegionRecord("whole net", 7, chosen, (chosen,))
    text = render_text(Report("net", "cpu", "1x3", "", regions=(region,)), width=120)
    summary = "openvino (2 regions, 2 operations outside: aten.rand draws random numbers)"
    assert f"whole net: {summary}" in text
    assert "whole net: openvino 3 operations: %two to %mean" in text
