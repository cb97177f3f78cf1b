"""Backends that misbehave are excluded with a reason, and the next best one is used."""

import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

import fxopt
from fxopt.api.whole import _Gate
from fxopt.errors import CalibrationError
from fxopt.plugin import Backend, BackendInfo
from tests.api.executables import Compile


@dataclass(frozen=True)
class Missing(Backend):
    info = BackendInfo("missing", ("cpu",), extra="pip install 'fxopt[missing]'")

    def unavailable(self):
        return "the package missing is not installed"

    def lower(self, program, inputs, target):
        raise AssertionError("must not be called")


@dataclass(frozen=True)
class Wrong(Backend):
    info = BackendInfo("wrong", ("cpu",))

    def lower(self, program, inputs, target):
        return Compile(lambda *given: tuple(t * 1.01 for t in program.module(*given)))


@dataclass(frozen=True)
class WrongElsewhere(Backend):
    """Right and very fast at the example's batch size, wrong at any other."""

    info = BackendInfo("wrong_elsewhere", ("cpu",))

    def lower(self, program, inputs, target):
        size, cached = len(inputs[0]), program.module(*inputs)

        def call(*given):
            if len(given[0]) == size:
                return cached
            return tuple(t + 1 for t in program.module(*given))

        return Compile(call)


@dataclass(frozen=True)
class SlowlyWrongElsewhere(WrongElsewhere):
    """The same, and slow to build."""

    info = BackendInfo("slowly_wrong_elsewhere", ("cpu",), builds_slowly=True)


@dataclass(frozen=True)
class FailsLater(Backend):
    info = BackendInfo("fails_later", ("cpu",))

    def lower(self, program, inputs, target):
        calls = iter(range(3))

        def call(*given):
            if next(calls, None) is None:
                raise RuntimeError("out of handles")
            return program.module(*given)

        return Compile(call)


@dataclass(frozen=True)
class FailsElsewhere(Backend):
    """Right at any batch size but four, and very fast at the example's."""

    info = BackendInfo("fails_elsewhere", ("cpu",))

    def lower(self, program, inputs, target):
        size, cached = len(inputs[0]), program.module(*inputs)

        def call(*given):
            if len(given[0]) == 4:
                raise RuntimeError("out of memory")
            return cached if len(given[0]) == size else program.module(*given)

        return Compile(call)


@dataclass(frozen=True)
class Fails(Backend):
    info = BackendInfo("fails", ("cpu",))

    def lower(self, program, inputs, target):
        raise KeyError("no such kernel")


@dataclass(frozen=True)
class FailsAtRun(Backend):
    info = BackendInfo("fails_at_run", ("cpu",))

    def lower(self, program, inputs, target):
        def call(*given):
            raise RuntimeError("illegal instruction")

        return Compile(call)


@dataclass(frozen=True)
class NotANumber(Backend):
    info = BackendInfo("not_a_number", ("cpu",))

    def lower(self, program, inputs, target):
        return Compile(lambda *given: tuple(t * float("nan") for t in program.module(*given)))


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (Wrong, "output error"),
        (WrongElsewhere, "another batch size"),
        (Fails, "no such kernel"),
        (FailsAtRun, "illegal instruction"),
        (FailsLater, "out of handles"),
        (NotANumber, "output error"),
    ],
)
def test_excluded_with_a_reason(model, x, plugins, backend, reason):
    plugins(backends=[backend])
    fast = fxopt.optimize(model, (x,), backends=[backend.info.name, "eager"])
    region = fast.report.regions[0]
    record = next(c for c in region.candidates if c.backend == backend.info.name)
    assert reason in record.reason
    assert region.chosen.backend != backend.info.name
    with torch.no_grad():
        assert (fast(x) - model(x)).abs().max() < 1e-4


def test_what_builds_slowly_is_compared_when_another_size_is_first_used(model, x, plugins):
    plugins(backends=[SlowlyWrongElsewhere])
    fast = fxopt.optimize(model, (x,), backends=["slowly_wrong_elsewhere", "eager"])
    assert fast.report.regions[0].chosen.backend == "slowly_wrong_elsewhere"
    other = torch.cat([x, x, x])
    with torch.no_grad(), pytest.warns(UserWarning, match="slowly_wrong_elsewhere.* is wrong"):
        found = fast(other)
    with torch.no_grad():
        assert (found - model(other)).abs().max() < 1e-4


@pytest.mark.parametrize("question", ["variants", "unsupported", "refuses"])
def test_one_that_fails_when_asked_what_it_supports_is_excluded(model, x, plugins, question):
    def fail(*_, **__):
        raise IndexError("no such table")

    broken = dataclass(frozen=True)(type("Broken", (Fails,), {question: fail}))
    plugins(backends=[broken])
    fast = fxopt.optimize(model, (x,), backends=["fails", "eager"])
    found = {c.backend: c.reason for c in fast.report.regions[0].candidates}
    assert found["fails"] == "it cannot say what it supports: IndexError: no such table"
    assert found["eager"] == ""


def test_one_that_is_missing_is_noted(model, x, plugins):
    plugins(backends=[Missing])
    fast = fxopt.optimize(model, (x,), time_limit=0)
    assert any("missing" in note and "not installed" in note for note in fast.report.notes)


@pytest.mark.parametrize("limits", [{}, {"max_drift": 0.1}, {"max_drop": 0.1}])
@pytest.mark.parametrize("data", ["calibration", "evaluate"])
def test_one_that_fails_on_the_users_data_is_excluded(model, x, plugins, data, limits):
    plugins(backends=[FailsElsewhere])
    batch = torch.cat([x, x])
    given = {"calibration": {"calibration": [batch]}, "evaluate": {}}[data]
    if data == "evaluate" or "max_drop" in limits:
        given["evaluate"] = lambda module: float(module(batch).detach().mean())
    fast = fxopt.optimize(model, (x,), backends=["fails_elsewhere"], **given, **limits)
    (record,) = (c for c in fast.report.regions[0].candidates if c.backend == "fails_elsewhere")
    assert "out of memory" in record.reason
    assert not fast.lowered()


def test_no_module_is_judged_by_the_score_of_one_that_is_gone():
    request = SimpleNamespace(evaluate=lambda module: module.bias.item())
    gate = _Gate(SimpleNamespace(captured=None), request, 0.0, [])
    for value in range(20):
        module = torch.nn.Linear(1, 1)  # often where the one before was in memory
        torch.nn.init.constant_(module.bias, value)
        assert gate.score(module) == value
        del module


def test_calibration_that_the_model_does_not_take_is_told(x, plugins):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2)).eval()
    with pytest.raises(CalibrationError, match="fails on a calibration batch"):
        fxopt.optimize(model, (x,), backends=["eager"], calibration=[x[:, :2]])


def test_slower_than_the_original_is_not_kept(model, x, plugins):
    @dataclass(frozen=True)
    class Slow(Backend):
        info = BackendInfo("slow", ("cpu",))

        def lower(self, program, inputs, target):
            def call(*given):
                time.sleep(0.02)
                return program.module(*given)

            return Compile(call)

    plugins(backends=[Slow])
    fast = fxopt.optimize(model, (x,), backends=["slow"])
    assert fast.report.regions[0].chosen.backend != "slow"
    assert not fast.lowered()
