"""How long a trial in the worker measures, when calls take what a test says they take."""

import importlib
from types import SimpleNamespace

import pytest

examine = importlib.import_module("fxopt.pipeline.isolation.examine")
measuring = importlib.import_module("fxopt.cost.measure")


@pytest.fixture
def program(monkeypatch):
    """A program that moves the clock, and counts its calls."""

    class Program:
        calls = 0
        now = 0.0
        milliseconds = 0.0

        def __call__(self, *flat):
            self.calls += 1
            self.now += self.milliseconds / 1e3

    program = Program()
    monkeypatch.setattr(measuring, "wait_until_idle", lambda seconds: None)
    clock = SimpleNamespace(perf_counter=lambda: program.now, monotonic=lambda: program.now)
    monkeypatch.setattr(examine, "time", clock)
    monkeypatch.setattr(measuring, "time", clock)
    return program


@pytest.mark.parametrize(("milliseconds", "calls"), [(300.0, 2), (2000.0, 0), (110.0, 5)])
def test_slow_calls_are_few(program, milliseconds, calls):
    """Of very slow ones, that is enough which was compared."""
    program.milliseconds = milliseconds
    found = examine._latency(program, (), milliseconds)
    assert found.median == pytest.approx(milliseconds)
    assert program.calls == calls


def test_fast_calls_are_timed_for_a_fifth_of_a_second(program):
    program.milliseconds = 1.0
    assert len(examine._latency(program, (), 1.0).milliseconds) == pytest.approx(200, abs=2)
