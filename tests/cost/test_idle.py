"""Waiting for threads to rest, when the clocks are ours."""

import importlib

import pytest

from fxopt.cost.idle import wait_until_idle

idle = importlib.import_module("fxopt.cost.idle")


@pytest.fixture
def machine(monkeypatch):
    """Threads spin for ``spinning`` seconds from now on."""

    class Machine:
        now = 100.0
        spinning = 0.0

        def sleep(self, seconds):
            self.now += seconds

        def used(self):
            return 2 * min(self.now - 100.0, self.spinning)

    machine = Machine()
    monkeypatch.setattr(idle.time, "sleep", machine.sleep)
    monkeypatch.setattr(idle.time, "monotonic", lambda: machine.now)
    monkeypatch.setattr(idle.time, "process_time", machine.used)
    return machine


@pytest.mark.parametrize(
    ("spinning", "waits"), [(0.0, 0.01), (0.0005, 0.01), (0.05, 0.06), (9.0, 0.26)]
)
def test_it_waits_as_long_as_threads_spin_but_not_for_good(machine, spinning, waits):
    machine.spinning = spinning
    wait_until_idle(0.255)
    assert machine.now - 100.0 == pytest.approx(waits, abs=1e-6)


def test_no_time_is_no_wait(machine):
    wait_until_idle(0.0)
    assert machine.now == 100.0
