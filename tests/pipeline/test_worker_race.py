"""What the worker keeps of its trials races there, and only the winner is built again."""

import importlib
import time
from dataclasses import replace

import pytest
import torch

from fxopt.pipeline.lowering import LoweringJob, exact_version, lower
from fxopt.pipeline.lowering.race import race_apart
from fxopt.pipeline.lowering.screen import screen
from fxopt_eager import Eager
from tests.building import image, small_cnn
from tests.pipeline.bad_backends import Bad, Named
from tests.pipeline.isolated import EXAMPLES
from tests.pipeline.support import TARGET

screen_module = importlib.import_module("fxopt.pipeline.lowering.screen")


@pytest.fixture
def none_beaten(monkeypatch):
    """On a busy machine, a trial of a tiny net says nothing."""
    monkeypatch.setattr(screen_module, "_CLOSE", 1e9)
    monkeypatch.setattr(screen_module, "memory_left", lambda: 1.0)


@pytest.fixture
def job(isolation):
    model = small_cnn()
    return LoweringJob(
        "net", TARGET, (), EXAMPLES, original=lambda: model(image(2)), isolation=isolation
    )


def test_what_is_dropped_when_its_turn_comes_is_not_tried(isolation, candidates, job):
    first, second = candidates(Bad(), Bad("is slow"))

    def judge(candidate):
        if candidate is second and first.measured:
            candidate.drop("hopeless", slower=True)

    screen([first, second], job, judge=judge)
    assert first.measured
    assert not second.measured
    assert second.record.seconds == 0
    assert second.record.reason == "hopeless"
    assert not isolation.holds(second.key)


def test_a_race_tells_who_is_faster_and_forgetting_ends_it(isolation, candidates, job):
    quick, slow = candidates(Bad(), Bad("is slow"))
    screen([quick], job)
    screen([slow], job)
    assert isolation.holds(quick.key)
    result = isolation.turn(slow.key, TARGET, timeout=60, calls=3)
    assert (len(result.milliseconds), result.reason) == (3, "")
    race_apart([quick, slow], job)
    assert slow.latency.median > quick.latency.median
    isolation.forget([quick.key])
    assert not isolation.holds(quick.key)
    assert isolation.holds(slow.key)
    assert isolation.turn(quick.key, TARGET, timeout=60).lost
    isolation.forget([slow.key])


def test_a_worker_that_ends_between_turns_is_no_fault_of_the_candidate(isolation, candidates, job):
    (candidate,) = candidates(Bad())
    screen([candidate], job)
    isolation._held.process.kill()
    isolation._held.process._process.wait()
    found = isolation.turn(candidate.key, TARGET, timeout=60)
    assert found.lost
    assert found.reason.endswith("is lost")
    assert not isolation.holds(candidate.key)


def test_where_memory_is_short_only_what_is_close_is_kept(isolation, candidates, job, monkeypatch):
    left = [0.9]
    monkeypatch.setattr(screen_module, "memory_left", lambda: left[0])
    first, second = candidates(Bad(), Bad("is slow"))
    second.note(milliseconds=2.0)
    for share, kept in ((0.9, True), (0.1, False)):
        left[0] = share
        first.note(milliseconds=1.0)
        screen_module._part_with_beaten([first, second], [], job)
        assert not first.beaten
        assert second.hopeful is kept


def test_what_is_clearly_beaten_is_not_kept(isolation, candidates, job):
    quick, slow, wrong = candidates(Bad(), Bad("is slow"), Bad("is wrong"))
    screen([quick, slow, wrong], job)
    assert slow.beaten
    assert "output error" in wrong.record.reason
    assert [isolation.holds(c.key) for c in (quick, slow, wrong)] == [True, False, False]
    isolation.forget([quick.key])


@pytest.mark.usefixtures("none_beaten")
def test_one_that_raises_in_the_race_is_out_and_the_others_race(
    isolation, candidates, job, tmp_path
):
    path = tmp_path / "now"
    first, second, bad = candidates(Bad(), Bad(bits=16), Bad("raises later", path=str(path)))
    screen([first, second, bad], job)
    path.touch()
    race_apart([first, second, bad], job)
    assert bad.record.reason == "RuntimeError: out of handles"
    assert first.raced
    assert second.raced
    assert first.record.milliseconds == first.latency.median


@pytest.mark.usefixtures("none_beaten")
def test_one_that_takes_the_worker_down_is_named_and_the_others_are_tried_again(
    isolation, candidates, job, tmp_path
):
    path = tmp_path / "now"
    good, bad = candidates(Bad(), Bad("exits later", path=str(path)))
    screen([good, bad], job)
    spent = good.record.seconds
    path.touch()
    race_apart([good, bad], job)
    assert "ended with exit code 4 while measuring bad/exact" in bad.record.reason
    assert not good.record.reason
    assert isolation.holds(good.key)
    assert good.raced
    assert good.record.seconds > spent


def test_a_time_limit_leaves_the_race_out(isolation, candidates, job):
    (candidate,) = candidates(Bad())
    screen([candidate], job)
    race_apart([candidate], replace(job, deadline=0.0))
    assert not candidate.raced


def version_of(program):
    with torch.no_grad():
        return exact_version(program, [program(*flat) for flat in EXAMPLES])


@pytest.mark.parametrize(("seconds", "winner"), [(0.05, "is slow"), (0.0, "torch")])
def test_where_calls_are_slow_torch_as_it_is_waits(job, monkeypatch, seconds, winner):
    module = importlib.import_module("fxopt.pipeline.lowering.lower")
    monkeypatch.setattr(module, "SLOW_MS", 5.0)
    backends = (Named("is slow"), Eager())
    job = replace(job, backends=backends, original=lambda: time.sleep(seconds))
    lowered = lower([version_of(small_cnn())], job)
    assert lowered.record.chosen.backend == winner
    assert lowered.after.median > 0
    others = {c.backend: c for c in lowered.record.candidates}
    assert others["eager"].milliseconds is None
    assert "not tried: it calls the kernels that the original calls" in others["eager"].reason
    assert ("torch" in others) is (winner == "torch")


def test_only_the_best_of_them_is_built_here(isolation, job, monkeypatch):
    built = []
    module = importlib.import_module("fxopt.pipeline.lowering.lower")
    plain_build, kept = module.build, set(isolation._held.kept)

    def build(candidate, job):
        built.append(candidate.name)
        plain_build(candidate, job)

    monkeypatch.setattr(module, "build", build)
    backends = (Named(), Named("is slow"), Named("is wrong"))
    lowered = lower([version_of(small_cnn())], replace(job, backends=backends))
    assert built == ["is right/exact"]
    reasons = {c.backend: c.reason for c in lowered.record.candidates}
    assert "clearly slower in its trial" in reasons["is slow"]
    assert "output error" in reasons["is wrong"]
    assert isolation._held.kept <= kept
