"""Analyses and facts."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from fxopt.analysis import Analyses, Analysis, Fact
from fxopt.cost import find_target
from fxopt.errors import PassError
from fxopt.passes import Context
from tests.building import aten, small_cnn


@dataclass(frozen=True)
class Calls(Analysis[int]):
    """How many nodes call an operator; keeps count of how often it is computed."""

    operator: object = aten.relu.default
    name = "calls"
    computed: ClassVar[list[object]] = []

    def run(self, program):
        self.computed.append(self.operator)
        return sum(1 for _ in program.find(self.operator))


@pytest.fixture(autouse=True)
def forget():
    Calls.computed.clear()


def remove_relu(program):
    with program.edit() as edit:
        relu = next(program.find(aten.relu.default))
        edit.redirect(relu, relu.args[0])


def test_results_are_cached_by_settings():
    program, analyses = small_cnn(), Analyses()
    assert [analyses.get(Calls(), program) for _ in range(3)] == [1, 1, 1]
    assert analyses.get(Calls(aten.sigmoid.default), program) == 0
    assert Calls.computed == [aten.relu.default, aten.sigmoid.default]


def test_results_are_forgotten_unless_preserved():
    program, analyses = small_cnn(), Analyses()
    analyses.get(Calls(), program)
    analyses.invalidate(preserved=["calls"])
    analyses.get(Calls(), program)
    assert len(Calls.computed) == 1
    remove_relu(program)
    analyses.invalidate(preserved=["another"])
    assert analyses.get(Calls(), program) == 0


def test_a_false_claim_of_preservation_is_caught():
    program, analyses = small_cnn(), Analyses()
    analyses.get(Calls(), program)
    analyses.check(program)
    remove_relu(program)
    analyses.invalidate(preserved=["calls"])
    with pytest.raises(PassError, match="analysis calls has changed") as caught:
        analyses.check(program)
    assert "`preserves`" in caught.value.hint


def test_a_pass_asks_its_context():
    program, context = small_cnn(), Context(find_target("cpu"))
    assert context.analysis(Calls(), program) == 1
    assert context.analyses.get(Calls(), program) == 1
    assert len(Calls.computed) == 1


def no_wide_layers(program):
    for node in program.find(nn.Linear):
        if program.leaf(node).out_features > 10:
            yield f"{node.name} is wide"


def test_a_fact_holds_or_names_where_it_does_not():
    fact = Fact("narrow", "no layer is wide", no_wide_layers)
    program = small_cnn()
    assert not fact.holds(program)
    assert list(fact.counterexamples(program)) == ["head is wide"]
    with program.edit() as edit:
        head = next(program.find(nn.Linear))
        edit.replace(head, nn.Linear(8, 5), head.args[0])
    assert fact.holds(program)
    assert program.call(torch.zeros(1, 3, 8, 8)).shape == (1, 5)
