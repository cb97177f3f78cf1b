"""How many workers there are, and when they start."""

from types import SimpleNamespace

import pytest

from fxopt.api import workers
from fxopt_eager import Eager
from fxopt_inductor import OneDNN
from tests.pipeline.bad_backends import Bad, Slow


@pytest.fixture
def started(monkeypatch):
    """Which ones were started; there are two cores."""
    started = []

    def shared(second=False):
        return SimpleNamespace(warm_up=lambda: started.append(second), second=second)

    monkeypatch.setattr(workers, "shared_isolation", shared)
    monkeypatch.setattr(workers, "_cores", lambda: 2)
    monkeypatch.delenv("FXOPT_ISOLATION")
    return started


def test_the_second_one_is_for_what_builds_slowly_beside_others(started):
    assert workers.first_worker([Bad(), Slow(), Eager()]).second is False
    assert workers.second_worker([Bad(), Slow(), Eager()], None).second is True
    assert started == [False, True]


@pytest.mark.parametrize(
    "backends", [[Bad()], [Slow()], [Slow(), Eager()], [Slow(), OneDNN()], [Eager()], []]
)
def test_there_is_none_where_nothing_would_be_built_at_once(started, backends):
    assert workers.second_worker(backends, None) is None
    assert started == []


def test_a_time_limit_asks_for_one_after_another(started):
    assert workers.second_worker([Bad(), Slow()], 60.0) is None


@pytest.mark.parametrize(
    ("setting", "cores", "first", "second"),
    [("0", 8, False, False), ("1", 8, True, False), ("", 8, True, True), ("", 1, True, False)],
)
def test_cores_and_the_setting_say_how_many(started, monkeypatch, setting, cores, first, second):
    monkeypatch.setenv("FXOPT_ISOLATION", setting)
    monkeypatch.setattr(workers, "_cores", lambda: cores)
    assert (workers.first_worker([Bad()]) is not None) is first
    assert (workers.second_worker([Bad(), Slow()], None) is not None) is second


@pytest.mark.parametrize(("named", "early"), [(None, [False]), (["eager"], [])])
def test_it_starts_early_where_it_is_needed_for_sure(started, named, early):
    workers.start_early(named)
    assert started == early


def test_native_backends_need_none(started):
    assert workers.first_worker([Eager()]) is None
    assert started == []
