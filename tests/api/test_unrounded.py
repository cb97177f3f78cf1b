"""Rounding that does not pay is left out, and the rest of the recipe stays."""

import time
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fxopt
from fxopt.plugin import Backend, BackendInfo, Lossy, Pass, PassInfo
from tests.api.executables import Compile

SHRUNK, ROUNDED = 1 / 64, 1 / 16


def on_grid(program, step):
    """Whether the weights of the head are multiples of a step."""
    (head,) = program.find(nn.Linear)
    weight = program.leaf(head).weight
    return torch.equal(weight, (weight / step).round() * step)


def coarser(program, step):
    with program.edit() as edit:
        for node in program.find(nn.Linear):
            old = program.leaf(node)
            new = nn.Linear(old.in_features, old.out_features)
            new.weight.data = (old.weight.data / step).round() * step
            new.bias.data = old.bias.data
            edit.replace(node, new, *node.args)
    return edit.result()


@dataclass(frozen=True)
class Shrink(Pass):
    info = PassInfo("shrink", "structure", Lossy())

    def run(self, program, context):
        return coarser(program, SHRUNK)


@dataclass(frozen=True)
class Round(Pass):
    info = PassInfo("round", "numeric", Lossy())

    def run(self, program, context):
        return coarser(program, ROUNDED)


@dataclass(frozen=True)
class FastOnShrunk(Backend):
    """Faster than anything that computes where weights are shrunk and not rounded, else slow."""

    info = BackendInfo("fast_on", ("cpu",))

    def is_fast(self, program):
        return on_grid(program, SHRUNK) and not on_grid(program, ROUNDED)

    def lower(self, program, inputs, target):
        known = {len(inputs[0]): program.module(*inputs)}
        fast = self.is_fast(program)

        def call(*given):
            time.sleep(0 if fast else 0.02)
            return known.get(len(given[0])) or program.module(*given)

        return Compile(call)


@dataclass(frozen=True)
class FastOnRounded(FastOnShrunk):
    def is_fast(self, program):
        return on_grid(program, ROUNDED)


@pytest.mark.parametrize(
    ("backend", "version", "recipe"),
    [(FastOnShrunk, "unrounded", "shrink"), (FastOnRounded, "lossy", "shrink,round")],
)
def test_rounding_that_does_not_pay_is_left_out_alone(model, x, plugins, backend, version, recipe):
    plugins(passes=[Shrink, Round], backends=[backend])
    fast = fxopt.optimize(model, (x,), passes="shrink,round", backends=["fast_on"])
    report = fast.report
    assert report.regions[0].chosen.version == version
    assert report.recipe == recipe
    tried = {c.version for c in report.regions[0].candidates}
    assert {"exact", "unrounded", "lossy"} <= tried
    if version == "unrounded":
        (rounding,) = (record for record in report.passes if record.name == "round")
        assert rounding.status == "rolled back"
        assert "not faster" in rounding.reason


@dataclass(frozen=True)
class Coarsen(Pass):
    info = PassInfo("coarsen", "structure", Lossy())

    def run(self, program, context):
        return coarser(program, 1.0)


@dataclass(frozen=True)
class Mend(Pass):
    """Rounds what the weights were before: as training with rounding might."""

    info = PassInfo("mend", "numeric", Lossy())

    def run(self, program, context):
        (head,), (before,) = program.find(nn.Linear), context.original.find(nn.Linear)
        program.leaf(head).weight.data = context.original.leaf(before).weight.data.clone()
        return coarser(program, ROUNDED)


@dataclass(frozen=True)
class FastOnCoarse(FastOnShrunk):
    def is_fast(self, program):
        return on_grid(program, 1.0)


def test_what_drifts_less_for_being_rounded_may_be_left_unrounded(model, x, plugins):
    plugins(passes=[Coarsen, Mend], backends=[FastOnCoarse])
    fast = fxopt.optimize(model, (x,), passes="coarsen,mend", backends=["fast_on"])
    drifts = {record.name: record.drift for record in fast.report.passes}
    assert drifts["coarsen"] > 2 * drifts["mend"]
    assert fast.report.regions[0].chosen.version == "unrounded"


def test_rounding_alone_races_with_the_exact_program_only(model, x, plugins):
    plugins(passes=[Round], backends=[FastOnRounded])
    fast = fxopt.optimize(model, (x,), passes="cleanup,round,fold_bn", backends=["fast_on"])
    assert "unrounded" not in {c.version for c in fast.report.regions[0].candidates}
