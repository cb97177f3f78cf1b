"""Where it is decided which of two backends is the faster one."""

from fxopt.cost import race_in_turns
from fxopt.pipeline.lowering.ties import left_to_decide_here
from tests.pipeline.bad_backends import Bad, Named, Slow


def test_two_that_will_race_here_need_no_further_turns(candidates):
    fast, other = candidates(Bad(), Named())
    assert left_to_decide_here({fast: 10.0, other: 11.0})
    assert left_to_decide_here({fast: 11.0, other: 10.0})
    assert not left_to_decide_here({fast: 10.0, other: 12.0})  # one of them alone is built here
    assert not left_to_decide_here({fast: 60.0, other: 61.0})  # building takes less than a race


def test_what_builds_slowly_has_to_come_closer(candidates):
    fast, slow = candidates(Bad(), Slow())
    assert left_to_decide_here({fast: 10.0, slow: 10.2})
    assert not left_to_decide_here({fast: 10.0, slow: 11.0})
    assert left_to_decide_here({fast: 11.0, slow: 10.0})  # it is the other one that is built too


def test_settings_of_one_backend_and_three_that_are_left_race_on(candidates):
    one, another, third = candidates(Bad(), Bad(bits=16), Named())
    assert not left_to_decide_here({one: 10.0, another: 10.0})
    assert not left_to_decide_here({one: 10.0, another: 10.0, third: 10.0})
    assert not left_to_decide_here({one: 10.0})


def test_a_race_ends_between_rounds_when_it_is_enough():
    told = []

    def enough(medians):
        told.append(dict(medians))
        return len(told) == 2

    turns = {"a": lambda: [10.0], "b": lambda: [10.1], "far behind": lambda: [90.0]}
    found = race_in_turns(turns, rounds=16, narrowing=True, enough=enough)
    assert [sorted(each) for each in told] == [["a", "b"]] * 2
    assert [len(found[name].milliseconds) for name in ("a", "b", "far behind")] == [3, 3, 2]
