"""How a race stands: who is out, and whether more turns would tell more."""

import math
import random

import pytest

from fxopt.cost.lead import standing
from fxopt.cost.measure import Latency, measure

MOST_ROUNDS = 16


def in_turns(lags, noise, seed):
    """Turns of candidates that lag behind by these shares, on a machine with outliers and drift."""
    chance = random.Random(seed)
    drift = [chance.choice([0.0, 0.7]) for _ in range(MOST_ROUNDS)]

    def turn(lag, slow):
        heavy = chance.gauss(0, 1) / math.sqrt(chance.gammavariate(1.5, 2 / 3))
        return [math.exp(math.log1p(lag) + slow + noise * heavy)]

    return {f"{lag:.1%}": [turn(lag, slow) for slow in drift] for lag in lags}


def raced(turns):
    """Plays a race to its end: who is left, and after how many rounds."""
    left = list(turns)
    for done in range(2, MOST_ROUNDS + 1):
        left, settled = standing({name: own[:done] for name, own in turns.items()}, left)
        if settled:
            break
    return left, done


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.06])
def test_the_fastest_stays_and_what_is_clearly_slower_goes(noise):
    ends = [raced(in_turns([0, 0.06, 0.5], noise, seed)) for seed in range(200)]
    assert sum("0.0%" in left for left, _ in ends) >= 194
    assert not any("50.0%" in left for left, _ in ends)


def test_a_quiet_machine_needs_fewer_rounds():
    def rounds(noise):
        return sum(raced(in_turns([0, 0.06], noise, seed))[1] for seed in range(100)) / 100

    assert rounds(0.005) < 5 < 7 < rounds(0.06)


def test_equals_stay_until_it_does_not_matter():
    left, rounds = raced(in_turns([0, 0.001], 0.002, 0))
    assert left == ["0.0%", "0.1%"]
    assert 8 < rounds < MOST_ROUNDS


def test_two_turns_that_agree_are_not_enough_for_little():
    turns = {"a": [[1.0], [1.0]], "b": [[1.1], [1.1]], "c": [[1.2], [1.2]]}
    assert standing(turns, ["a", "b", "c"]) == (["a", "b"], False)


def test_drift_of_the_machine_takes_nobody_out():
    slow = [1.0, 2.0] * 4
    turns = {"a": [[s] for s in slow], "b": [[1.01 * s] for s in slow]}
    left, _ = standing(turns, ["a", "b"])
    assert left == ["a", "b"]


def test_one_alone_is_settled():
    assert standing({"a": [[1.0], [2.0]]}, ["a"]) == (["a"], True)
    found = measure({"a": lambda: None}, rounds=9, burst=1, narrowing=True)
    assert isinstance(found["a"], Latency)
    assert len(found["a"].milliseconds) == 2
