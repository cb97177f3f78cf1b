"""Timings in turns, with the speed of the machine taken out."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxopt.cost.steady import steadied


def timed(milliseconds, speeds):
    """Turns of three calls, of which the median is exact."""
    return [[0.9 * milliseconds * s, milliseconds * s, 1.1 * milliseconds * s] for s in speeds]


def medians(turns):
    return {name: statistics.median(times) for name, times in steadied(turns).items()}


def test_what_slows_all_alike_changes_no_ratio():
    speeds = [1.0, 2.4, 2.4, 1.0, 2.3, 1.0, 1.1, 2.2]
    turns = {"a": timed(4.0, speeds), "b": timed(4.1, speeds), "c": timed(9.0, speeds)}
    found = medians(turns)
    assert found["b"] / found["a"] == pytest.approx(4.1 / 4.0, rel=1e-9)
    assert found["c"] / found["a"] == pytest.approx(9.0 / 4.0, rel=1e-9)


def test_medians_on_their_own_would_be_off():
    """Half of the rounds are slow, and a little noise decides on which side a median falls."""
    a, b = [1.0, 2.4] * 4 + [1.0], [1.0, 2.4] * 4 + [2.4]
    turns = {"a": timed(4.0, a), "b": timed(4.0, b), "c": timed(4.0, a)}
    apart = [statistics.median(t for turn in turns[name] for t in turn) for name in "ab"]
    assert apart[1] / apart[0] > 1.9
    found = medians(turns)
    assert found["b"] == pytest.approx(found["a"], rel=0.12)


def test_who_left_early_is_held_against_the_rounds_that_he_ran_in():
    speeds = [0.5, 0.5, 1.0, 1.0, 1.0]
    found = medians(
        {"a": timed(4.0, speeds), "b": timed(4.4, speeds), "out": timed(3.8, speeds[:2])}
    )
    assert found["out"] / found["a"] == pytest.approx(0.95, rel=1e-9)
    assert found["a"] == pytest.approx(4.0, rel=1e-9)


def test_many_slow_ones_that_left_early_stay_slow():
    """Those two rounds are no slow ones: more than half of who ran in them was slow in itself."""
    turns = {"a": timed(10.0, [1.0] * 16), "b": timed(10.5, [1.0] * 16)}
    turns |= {f"slow {i}": timed(ms, [1.0] * 2) for i, ms in enumerate((16.0, 75.0, 170.0))}
    found = medians(turns)
    expected = {"a": 10.0, "b": 10.5, "slow 0": 16.0, "slow 1": 75.0, "slow 2": 170.0}
    assert found == pytest.approx(expected, rel=1e-9)


@given(
    st.lists(st.floats(0.2, 5.0), min_size=12, max_size=12),
    st.lists(st.tuples(st.floats(0.1, 100.0), st.integers(2, 12)), min_size=2, max_size=8),
)
def test_whoever_leaves_and_whenever_ratios_hold(speeds, candidates):
    turns = {str(i): timed(ms, speeds[:rounds]) for i, (ms, rounds) in enumerate(candidates)}
    found = medians(turns)
    for i, (ms, _) in enumerate(candidates):
        assert found[str(i)] / found["0"] == pytest.approx(ms / candidates[0][0], rel=1e-6)


def test_one_alone_stays_as_it_is():
    assert steadied({"a": [[1.0, 2.0], [4.0, 4.0]]}) == {"a": [1.0, 2.0, 4.0, 4.0]}
    assert steadied({}) == {}


@given(
    st.lists(st.floats(0.2, 5.0), min_size=1, max_size=12),
    st.lists(st.floats(0.1, 100.0), min_size=2, max_size=5),
)
def test_any_speeds_and_latencies_come_apart(speeds, latencies):
    turns = {str(i): timed(latency, speeds) for i, latency in enumerate(latencies)}
    found = medians(turns)
    for i, latency in enumerate(latencies):
        assert found[str(i)] / found["0"] == pytest.approx(latency / latencies[0], rel=1e-6)
