"""A model that came out as another one does not come out without a word."""

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fxopt
from fxopt.api.collapse import with_warning
from fxopt.api.request import make_request
from fxopt.plugin import Backend, BackendInfo, Lossy, Pass, PassInfo
from fxopt.registry import default_registry
from fxopt.report import PassRecord, Report
from tests.api.executables import Compile


def scaled(program, factor):
    """The head's weights and bias, times a factor."""
    with program.edit() as edit:
        for node in program.find(nn.Linear):
            old = program.leaf(node)
            new = nn.Linear(old.in_features, old.out_features)
            new.weight.data, new.bias.data = old.weight.data * factor, old.bias.data * factor
            edit.replace(node, new, *node.args)
    return edit.result()


@dataclass(frozen=True)
class Nudge(Pass):
    info = PassInfo("nudge", "structure", Lossy())

    def run(self, program, context):
        return scaled(program, 0.9)


@dataclass(frozen=True)
class Ruin(Pass):
    factor: float = 0.1
    info = PassInfo("ruin", "numeric", Lossy())

    def run(self, program, context):
        return scaled(program, self.factor)


@dataclass(frozen=True)
class Known(Backend):
    """Fast where the weights of the head were ruined, else slow."""

    info = BackendInfo("known", ("cpu",))

    def lower(self, program, inputs, target):
        known = {len(inputs[0]): program.module(*inputs)}
        (head,) = program.find(nn.Linear)
        ruined = bool(program.leaf(head).weight.abs().max() < 0.2)

        def call(*given):
            time.sleep(0 if ruined else 0.02)
            return known.get(len(given[0])) or program.module(*given)

        return Compile(call)


@pytest.fixture(autouse=True)
def known(plugins):
    plugins(passes=[Nudge, Ruin], backends=[Known])


def optimized(model, x, passes, **limits):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast = fxopt.optimize(model, (x,), passes=passes, backends=["known"], **limits)
    told = [each for each in caught if "little to do" in str(each.message)]
    notes = [note for note in fast.report.notes if "little to do" in note]
    return fast.report, told, notes


def test_a_collapse_is_told_by_a_warning_and_in_the_report(model, x):
    report, (told,), (note,) = optimized(model, x, "nudge,ruin")
    assert report.recipe == "nudge,ruin"
    assert str(told.message) == note
    assert "drift by 91 %, most of it by ruin" in note
    assert "max_drift=" in note
    assert "max_drop=" in note
    assert Path(told.filename) == Path(__file__)


def test_what_drifts_little_is_no_collapse(model, x):
    report, told, notes = optimized(model, x, "nudge,ruin{factor=0.6}")
    assert report.recipe == "nudge,ruin{factor=0.6}"
    assert not told
    assert not notes


@pytest.mark.parametrize(
    "limits", [{"max_drift": 0.95}, {"max_drop": 1.0, "evaluate": lambda module: 0.5}]
)
def test_whoever_set_a_limit_is_not_warned(model, x, limits):
    report, told, notes = optimized(model, x, "ruin", **limits)
    assert report.recipe == "ruin"
    assert not told
    assert not notes


LABELLED = [(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))]


@pytest.mark.parametrize(
    ("training", "most"),
    [
        (None, 0.5),
        (fxopt.Training([torch.zeros(2, 3)], loss=None), 0.5),
        (fxopt.Training([torch.zeros(2, 3)], loss=None, teacher=nn.Linear(3, 2)), 1.0),
        (fxopt.Training(LABELLED), 1.0),
    ],
)
def test_what_learns_from_others_may_go_further(training, most):
    names = ("target", "passes", "calibration", "evaluate", "max_drop", "max_drift", "backends",
             "time_limit", "workdir", "progress")  # fmt: skip
    given = {**dict.fromkeys(names), "target": "cpu", "seed": 0}
    request = make_request(default_registry(), training=training, **given)
    records = (
        PassRecord("prune", "prune", False, "applied", drift=1.4),
        PassRecord("tune", "tune", False, "applied", drift=0.3),
        PassRecord("quantize", "quantize", False, "applied", drift=1.2),
        PassRecord("later", "later", False, "rolled back", drift=9.0),
    )
    report = Report("Net", "cpu", "1x3", "", passes=records, drift=most - 0.01)
    assert with_warning(report, request) is report
    with pytest.warns(UserWarning, match="most of it by prune"):
        (note,) = with_warning(replace(report, drift=most), request).notes
    assert "little to do" in note
