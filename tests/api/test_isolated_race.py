"""Backends that take their process down, or never answer, cost only themselves."""

import pytest
import torch

import fxopt
import fxopt.api.workers as workers_module
from fxopt.pipeline.isolation import Isolation
from fxopt.pipeline.lowering import attempt
from tests.pipeline.bad_backends import Bad, Fleet

PLUGIN = "tests.pipeline.bad_backends"


@pytest.fixture
def isolated(monkeypatch, plugins):
    plugins(backends=[Bad, Fleet])
    monkeypatch.setenv("FXOPT_ISOLATION", "1")
    with Isolation(plugins=(PLUGIN,)) as isolation:
        monkeypatch.setattr(workers_module, "shared_isolation", lambda: isolation)
        yield isolation


def reasons(fast):
    return {c.backend.removeprefix("fleet that "): c.reason for c in candidates(fast)}


def candidates(fast):
    return fast.report.regions[0].candidates


def test_each_is_excluded_with_a_reason_and_the_next_best_is_used(model, x, isolated, monkeypatch):
    monkeypatch.setattr(attempt, "PATIENCE_SECONDS", 6.0)
    fast = fxopt.optimize(model, (x,), backends=["fleet"])
    found = reasons(fast)
    assert "died of SIGSEGV while compiling" in found["crashes"]
    assert "no answer after 6 s" in found["hangs"]
    assert "no such kernel" in found["raises"]
    assert "output error" in found["is wrong"]
    assert found["is right"] == ""
    assert fast.report.regions[0].chosen.backend in {"fleet that is right", "torch"}
    with torch.no_grad():
        assert (fast(x) - model(x)).abs().max() < 1e-4


def test_a_hang_does_not_outlast_the_time_limit(model, x, isolated):
    fast = fxopt.optimize(model, (x,), backends=["fleet"], time_limit=8)
    found = reasons(fast)
    assert found["hangs"] == "time limit"
    assert fast.report.seconds < 100  # the hang lasts 1000
    with torch.no_grad():
        assert (fast(x) - model(x)).abs().max() < 1e-4


def test_isolation_can_be_switched_off(model, x, isolated, monkeypatch):
    monkeypatch.setenv("FXOPT_ISOLATION", "0")
    monkeypatch.setattr(Isolation, "trial", lambda *_, **__: pytest.fail("a trial took place"))
    fast = fxopt.optimize(model, (x,), backends=["bad"])
    assert any(c.backend == "bad" and c.error is not None for c in candidates(fast))
