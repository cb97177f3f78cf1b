"""Variants of less precision race where a limit allows it, and are refused where it is exceeded."""

import time
from dataclasses import dataclass

import pytest
import torch

import fxopt
from fxopt.pipeline.lowering.tuning import Timing, TuningFile
from fxopt.plugin import Backend, BackendInfo
from tests.api.executables import Compile


@dataclass(frozen=True)
class Coarse(Backend):
    """Exact, or in a variant of less precision."""

    info = BackendInfo("coarse", ("cpu",))
    error: float = 0.0

    @property
    def label(self):
        return "coarse" if self.error else "fine"

    def variants(self, program, target, exact):
        return [self] if exact else [self, Coarse(error=0.01)]

    def lower(self, program, inputs, target):
        return Compile(lambda *x: tuple(t * (1 + self.error) for t in program.module(*x)))


@pytest.mark.parametrize(("limit", "reason"), [(0.02, ""), (0.001, "output error")])
def test_a_drift_that_is_allowed_lets_less_precise_variants_race(model, x, plugins, limit, reason):
    plugins(backends=[Coarse])
    fast = fxopt.optimize(model, (x,), backends=["coarse"], max_drift=limit)
    candidates = fast.report.regions[0].candidates
    tried = {(c.backend, c.version): c for c in candidates}
    assert {("fine", "exact"), ("coarse", "reduced")} <= set(tried)
    assert ("fine", "reduced") not in tried
    assert reason in tried["coarse", "reduced"].reason
    with torch.no_grad():
        assert (fast(x) - model(x)).norm() <= limit * model(x).norm()


@pytest.mark.parametrize("limit", [0.02, 0.001, 0.0])
def test_a_drop_that_is_allowed_lets_them_race_too_and_is_kept(model, x, plugins, limit):
    def score(module):
        with torch.no_grad():
            return 1 - float((module(x) - model(x)).norm() / model(x).norm())

    plugins(backends=[Coarse])
    fast = fxopt.optimize(model, (x,), backends=["coarse"], evaluate=score, max_drop=limit)
    tried = {(c.backend, c.version): c for c in fast.report.regions[0].candidates}
    assert (("coarse", "reduced") in tried) == (limit > 0)
    assert score(fast) >= 1 - limit - 1e-6
    if 0 < limit < 0.01 and (reason := tried["coarse", "reduced"].reason):
        assert "the score drops" in reason


def test_without_a_drift_only_exact_variants_race(model, x, plugins):
    plugins(backends=[Coarse])
    fast = fxopt.optimize(model, (x,), backends=["coarse"])
    assert {c.backend for c in fast.report.regions[0].candidates} == {"fine", "torch"}


@dataclass(frozen=True)
class Hasty(Coarse):
    """Computes nothing; it is far faster where it is less precise."""

    info = BackendInfo("hasty", ("cpu",))
    seconds: float = 2e-4

    def variants(self, program, target, exact):
        return [self] if exact else [self, Hasty(error=0.01, seconds=0)]

    def lower(self, program, inputs, target):
        expected = {}

        def call(*given):
            if len(given[0]) not in expected:
                expected[len(given[0])] = program.module(*given)
            time.sleep(self.seconds)
            return tuple(t * (1 + self.error) for t in expected[len(given[0])])

        return Compile(call)


@dataclass(frozen=True)
class Slower(Hasty):
    info = BackendInfo("slower", ("cpu",))
    seconds: float = 3e-3

    @property
    def label(self):
        return "slower"

    def variants(self, program, target, exact):
        return [self]


def refusing_coarse(model, x):
    """Accepts what is exact alone."""

    def score(module):
        with torch.no_grad():
            return 1 - 10 * float((module(x) - model(x)).norm() / model(x).norm())

    return {"evaluate": score, "max_drop": 0.02}


def test_what_was_slower_than_one_that_the_score_refuses_is_not_lost(model, large, plugins):
    plugins(backends=[Hasty])
    limits = refusing_coarse(model, large)
    for known in (False, True):  # the second time, timings of the first take it out at once
        fast = fxopt.optimize(model, (large,), backends=["hasty"], **limits)
        region = fast.report.regions[0]
        tried = {candidate.backend: candidate.reason for candidate in region.candidates}
        assert "the score drops" in tried["coarse"], known
        assert region.chosen.backend == "fine", known


def test_what_was_faster_than_the_winner_comes_back_too(model, large, plugins, monkeypatch):
    """Where something wins that is not plain torch, but was not timed before."""
    plugins(backends=[Hasty, Slower])
    arguments = {"backends": ["hasty", "slower"], **refusing_coarse(model, large)}
    fxopt.optimize(model, (large,), **arguments)
    read = TuningFile.read

    def without_slower(file):
        known = read(file)
        assert {name.partition("/")[0] for name in known} >= {"fine", "slower"}
        coarse = {"coarse/reduced": Timing(1e-3, True)}
        return coarse | {name: took for name, took in known.items() if "slower" not in name}

    monkeypatch.setattr(TuningFile, "read", without_slower)
    lines = []
    fast = fxopt.optimize(model, (large,), progress=lines.append, **arguments)
    region = fast.report.regions[0]
    assert region.chosen.backend == "fine"
    lowered = [line.split()[-1] for line in lines if line.startswith("lowering")]
    assert lowered.index("slower") < lowered.index("fine")  # it was out at first
