"""Timing in turns: who gets how many, when the clock is ours."""

import importlib
from collections import Counter

import pytest

from fxopt.cost import fastest, measure

measuring = importlib.import_module("fxopt.cost.measure")  # the package has a function of that name


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Candidates return what they took, in milliseconds."""
    monkeypatch.setattr(measuring, "wait_until_idle", lambda seconds: None)
    monkeypatch.setattr(measuring, "_WARM_UP_MS", 0)
    monkeypatch.setattr(measuring, "_time_ms", lambda candidate: candidate())


def taking(milliseconds, turns=None, name=None):
    def call():
        if turns is not None:
            turns.append(name)
        return milliseconds

    return call


def test_all_get_a_turn_in_each_round_in_changing_order():
    turns = []
    calls = {name: taking(1.0, turns, name) for name in "abc"}
    found = measure(calls, rounds=8, burst=4)
    assert [len(found[name].milliseconds) for name in "abc"] == [32, 32, 32]
    bursts = ["".join(turns[i : i + 18 : 6]) for i in range(0, len(turns), 18)]
    assert len(bursts) == 8
    assert {"".join(sorted(burst)) for burst in bursts} == {"abc"}
    assert len(set(bursts)) >= 3


def test_slow_calls_get_fewer_in_a_turn():
    found = measure({"slow": taking(150.0), "fast": taking(1.0)}, rounds=2, burst=5)
    assert len(found["slow"].milliseconds) == 2
    assert len(found["fast"].milliseconds) == 10
    assert fastest(found) == ["fast", "slow"]


@pytest.mark.parametrize(
    ("milliseconds", "warming", "timed"),
    [
        (1.0, 50, 3),
        (30.0, 2, 3),
        (45.0, 2, 2),
        (90.0, 2, 1),
        (150.0, 1, 1),
        (250.0, 1, 1),
        (400.0, 0, 1),
    ],
)
def test_what_is_short_warms_up_for_a_while(monkeypatch, milliseconds, warming, timed):
    monkeypatch.setattr(measuring, "_WARM_UP_MS", 50.0)
    turns = []
    found = measure({"a": taking(milliseconds, turns, "a")}, rounds=1, burst=3)
    assert len(found["a"].milliseconds) == timed
    assert len(turns) == warming + timed


def test_the_closer_to_the_best_the_more_rounds():
    calls = {"best": taking(1.0), "near": taking(1.05), "behind": taking(1.1), "far": taking(9.0)}
    found = measure(calls, rounds=12, burst=1, narrowing=True)
    rounds = {name: len(latency.milliseconds) for name, latency in found.items()}
    assert rounds == {"best": 4, "near": 4, "behind": 3, "far": 2}


def test_one_that_is_left_ends_the_rounds():
    found = measure({"best": taking(1.0), "far": taking(9.0)}, rounds=12, burst=1, narrowing=True)
    assert Counter(len(each.milliseconds) for each in found.values()) == {2: 2}


@pytest.mark.parametrize(
    ("seconds", "fewest", "rounds"),
    [(0.0, 2, 2), (3.5, 2, 5), (None, 2, 6), (0.0, 4, 4), (0.0, 9, 6)],
)
def test_rounds_end_when_time_is_up(monkeypatch, seconds, fewest, rounds):
    now = iter(range(100))
    monkeypatch.setattr(measuring.time, "monotonic", lambda: float(next(now)))
    calls = {"a": taking(1.0), "b": taking(1.0)}
    found = measure(calls, rounds=6, burst=1, seconds=seconds, fewest=fewest)
    # one look at the clock before the first round, and one after each from the second on
    assert {len(each.milliseconds) for each in found.values()} == {rounds}


def test_what_all_have_had_is_the_first_round():
    turns = []
    calls = {name: lambda name=name: turns.append(name) or [2.0] for name in "ab"}
    found = measuring.race_in_turns(calls, rounds=3, first={"a": [4.0], "b": [6.0]})
    assert Counter(turns) == {"a": 2, "b": 2}
    assert {len(each.milliseconds) for each in found.values()} == {3}


def test_one_bad_turn_takes_nobody_out():
    calls = Counter()

    def hiccup():
        calls["hiccup"] += 1
        return 50.0 if calls["hiccup"] <= 6 else 0.5

    found = measure({"steady": taking(1.0), "hiccup": hiccup}, rounds=12, burst=4, narrowing=True)
    assert len(found["hiccup"].milliseconds) > 4
