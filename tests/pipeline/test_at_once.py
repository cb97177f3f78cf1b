"""What builds slowly is built in a second worker, and raced across both."""

import importlib
import os
import time
from dataclasses import replace

import pytest

from fxopt.pipeline.isolation import Isolation
from fxopt.pipeline.lowering import LoweringJob, lower
from fxopt.pipeline.lowering.at_once import choose
from fxopt.pipeline.lowering.candidate import build
from fxopt.pipeline.lowering.race import race_apart
from fxopt.pipeline.lowering.screen import screen
from tests.building import image, small_cnn
from tests.pipeline.bad_backends import Bad, Slow
from tests.pipeline.support import TARGET

at_once = importlib.import_module("fxopt.pipeline.lowering.at_once")
lower_module = importlib.import_module("fxopt.pipeline.lowering.lower")
screen_module = importlib.import_module("fxopt.pipeline.lowering.screen")

PLUGIN = "tests.pipeline.bad_backends"
EXAMPLES = [[image(2)], [image(3)]]


@pytest.fixture(scope="module")
def workers():
    with Isolation(plugins=(PLUGIN,)) as first, Isolation(plugins=(PLUGIN,)) as second:
        first.warm_up()
        second.warm_up()
        yield first, second


@pytest.fixture
def job(workers, monkeypatch):
    """With two workers; a trial of a tiny net on a busy machine beats nothing."""
    monkeypatch.setattr(screen_module, "_CLOSE", 1e9)
    for module in (screen_module, at_once):
        monkeypatch.setattr(module, "memory_left", lambda: 1.0)
    model, (first, second) = small_cnn(), workers
    job = LoweringJob(
        "net",
        TARGET,
        (),
        EXAMPLES,
        original=lambda: model(image(2)),
        isolation=first,
        beside=second,
    )
    yield job
    for isolation in workers:
        isolation.forget([*isolation._held.kept])


def test_both_kinds_are_built_at_the_same_time(candidates, job, workers, tmp_path):
    """Each of them fails if the other one is not being built."""
    both = candidates(Bad("meets", 16, str(tmp_path)), Slow("meets", 32, str(tmp_path)))
    screen(both, job, at_once=True)
    assert [c.record.reason for c in both] == ["", ""]
    assert all(c.record.milliseconds > 0 and c.record.error == 0 for c in both)
    assert [w.holds(both[0].key) for w in workers] == [True, False]
    assert [w.holds(both[1].key) for w in workers] == [False, True]


def test_what_is_right_is_built_here_while_the_last_one_is_tried(candidates, job, tmp_path):
    path = str(tmp_path)
    first, last, slow = candidates(
        Bad(), Bad("waits for two", path=path), Slow("is counted", path=path)
    )
    screen([first, last, slow], job, at_once=True)
    assert last.record.reason == ""
    assert [c.module is not None for c in (first, last, slow)] == [False, False, True]
    assert {int(file.name) for file in tmp_path.iterdir()} > {os.getpid()}


def test_what_was_built_early_and_loses_is_not_kept(candidates, job):
    fast, slow = candidates(Bad(), Slow())
    for candidate, milliseconds in ((fast, 1.0), (slow, 2.0)):
        candidate.note(milliseconds=milliseconds)
    build(slow, job)
    assert slow.module is not None
    assert lower_module._finalists([fast, slow], job) == [fast]
    assert slow.module is None


def test_one_that_is_hardly_faster_is_not_built_beside_slow_calls(candidates, job):
    built, faster = candidates(Slow(), Bad())
    for candidate, milliseconds in ((faster, 990.0), (built, 1000.0)):
        candidate.note(milliseconds=milliseconds)
    build(built, job)
    assert lower_module._finalists([faster, built], job) == [built]
    faster.note(milliseconds=900.0)
    assert lower_module._finalists([faster, built], job) == [faster]


def test_they_race_wherever_they_are(candidates, job):
    fast, slow = candidates(Bad(), Slow("is slow"))
    screen([fast, slow], job, at_once=True)
    race_apart([fast, slow], job)
    assert slow.latency.median > fast.latency.median


def test_the_turn_that_all_had_at_once_is_not_taken_again(candidates, job, workers, monkeypatch):
    both = candidates(Bad(), Slow("is slow"))
    screen(both, job, at_once=True)
    had = [candidate.turn for candidate in both]
    assert all(had)
    taken = []
    for worker in workers:
        turn = worker.turn
        monkeypatch.setattr(
            worker, "turn", lambda *a, turn=turn, **k: taken.append(a[0]) or turn(*a, **k)
        )
    race_apart(both, job)  # one is so far ahead that two rounds are enough
    assert sorted(taken) == sorted(candidate.key for candidate in both)
    assert [candidate.turn for candidate in both] == [(), ()]


def test_what_builds_fast_has_been_compared_at_other_sizes(candidates, job):
    right, wrong, slow = candidates(Bad(), Bad("is wrong at other sizes"), Slow())
    screen([right, wrong, slow], job, at_once=True)
    assert right.right_elsewhere
    assert wrong.record.reason.startswith("at another batch size: output error")
    assert not slow.right_elsewhere


def test_one_that_builds_slowly_and_dies_costs_only_itself(candidates, job):
    fast, slow = candidates(Bad(), Slow("crashes"))
    screen([fast, slow], job, at_once=True)
    assert "died of SIGSEGV" in slow.record.reason
    assert fast.measured
    assert job.isolation.holds(fast.key)


def test_what_is_lost_as_another_one_dies_is_tried_again(candidates, job):
    first, dies, slow = candidates(Bad(), Bad("crashes"), Slow())
    screen([first, dies, slow], job, at_once=True)
    assert "died of SIGSEGV" in dies.record.reason
    assert first.measured
    assert slow.measured
    assert job.isolation.holds(first.key)


def test_only_the_first_of_those_that_build_slowly_is_built_before_the_rest_is_known(
    candidates, job
):
    fast, slow, other = candidates(Bad(), Slow(), Slow(bits=16))

    def judge(candidate):
        if fast.measured:  # nobody is asked about what has been tried
            candidate.drop("hopeless", slower=True)

    screen([slow, other, fast], job, judge=judge, at_once=True)
    assert (slow.measured, other.measured) == (True, False)
    assert [c.record.reason for c in (fast, slow, other)] == ["", "", "hopeless"]


def test_where_no_second_worker_can_be_had_the_first_one_does_it_all(candidates, job, monkeypatch):
    monkeypatch.setattr(job.beside, "_obstacle", "no more processes")
    fast, slow = candidates(Bad(), Slow())
    screen([fast, slow], job, at_once=True)
    assert fast.measured
    assert slow.measured
    assert job.isolation.holds(slow.key)


def test_an_interrupt_ends_what_is_being_built_beside(candidates, job, monkeypatch):
    fast, slow = candidates(Bad(), Slow("hangs"))
    attempt = at_once.attempt

    def interrupted(candidate, *arguments, **options):
        if candidate is slow:
            return attempt(candidate, *arguments, **options)
        time.sleep(0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(at_once, "attempt", interrupted)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        screen([fast, slow], job, at_once=True)
    assert time.monotonic() - start < 30
    workers = [each._held.process for each in job.isolations]
    assert not any(worker is not None and worker.alive for worker in workers)


def test_nothing_is_built_at_once_without_memory_a_second_worker_or_both_kinds(
    candidates, job, monkeypatch
):
    fast, slow = candidates(Bad(), Slow())

    def chosen(these, job=job, out=()):
        return choose(these, lambda c: c.drop("out") if c in out else None, job)

    assert chosen([slow, fast]) == [fast, slow]
    assert chosen([fast]) == chosen([slow]) == []
    assert chosen([fast, slow], replace(job, beside=None)) == []
    monkeypatch.setattr(at_once, "memory_left", lambda: 0.3)
    assert chosen([fast, slow]) == []
    monkeypatch.setattr(at_once, "memory_left", lambda: 0.5)
    assert chosen([fast, slow], out=[slow]) == []


def test_the_best_of_both_workers_is_kept(candidates, job, workers):
    backends = (Bad("is slow"), Slow())
    lowered = lower([candidates(Bad())[0].version], replace(job, backends=backends))
    found = {c.backend: c for c in lowered.record.candidates}
    assert found["bad"].milliseconds > found["slow"].milliseconds
    assert lowered.record.chosen.backend != "bad"
    assert not any(worker._held.kept for worker in workers)
