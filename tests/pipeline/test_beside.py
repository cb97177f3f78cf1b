"""What builds slowly is prepared in this process while a worker builds it."""

import importlib
import time
from dataclasses import replace

import pytest

from fxopt.pipeline.isolation import Isolation
from fxopt.pipeline.lowering import LoweringJob
from fxopt.pipeline.lowering.candidate import build
from fxopt.pipeline.lowering.screen import screen
from tests.building import image, small_cnn
from tests.pipeline.bad_backends import Bad, Slow
from tests.pipeline.isolated import EXAMPLES, PLUGIN
from tests.pipeline.support import TARGET

beside = importlib.import_module("fxopt.pipeline.lowering.beside")
lower_module = importlib.import_module("fxopt.pipeline.lowering.lower")


@pytest.fixture
def job(isolation, monkeypatch):
    monkeypatch.setattr(beside, "memory_left", lambda: 1.0)
    model = small_cnn()
    yield LoweringJob(
        "net", TARGET, (), EXAMPLES, original=lambda: model(image(2)), isolation=isolation
    )
    isolation.forget([*isolation._held.kept])


def test_it_is_prepared_while_the_worker_builds(candidates, job, tmp_path):
    """The trial fails if nothing is prepared until it ends."""
    (slow,) = candidates(Slow("waits to be prepared", path=str(tmp_path)))
    screen([slow], job)
    assert (slow.record.reason, slow.module) == ("", None)
    prepared = slow.prepared
    build(slow, job)
    assert slow.module is prepared
    assert (slow.prepared, slow.record.error) == (None, 0.0)


def test_it_is_prepared_when_the_others_are_built(candidates, job, tmp_path, isolation):
    fast, slow = candidates(Bad(), Slow("waits to be prepared", path=str(tmp_path)))
    with Isolation(plugins=(PLUGIN,)) as second:
        both = LoweringJob(
            "net", TARGET, (), EXAMPLES, original=job.original, isolation=isolation, beside=second
        )
        screen([fast, slow], both, at_once=True)
    assert [c.record.reason for c in (fast, slow)] == ["", ""]
    assert slow.prepared is not None


def test_what_builds_fast_is_not_prepared(candidates, job):
    (fast,) = candidates(Bad())
    screen([fast], job)
    assert (fast.record.reason, fast.prepared) == ("", None)


def test_one_that_cannot_be_prepared_is_built_as_ever(candidates, job):
    (slow,) = candidates(Slow("cannot be prepared"))
    screen([slow], job)
    assert (slow.record.reason, slow.prepared) == ("", None)
    build(slow, job)
    assert slow.module is not None


def test_nothing_is_prepared_where_memory_is_short(candidates, job, monkeypatch):
    monkeypatch.setattr(beside, "memory_left", lambda: 0.3)
    (slow,) = candidates(Slow())
    screen([slow], job)
    assert (slow.record.reason, slow.prepared) == ("", None)


def test_nothing_is_prepared_that_might_outlast_a_time_limit(candidates, job):
    (slow,) = candidates(Slow())
    screen([slow], replace(job, deadline=time.monotonic() + 60))
    assert (slow.record.reason, slow.prepared) == ("", None)


def test_what_was_prepared_and_loses_is_not_kept(candidates, job):
    fast, slow = candidates(Bad(), Slow("is slow"))
    lower_module._choose(fast.version, both := [fast, slow], job)
    assert [candidate.prepared for candidate in both] == [None] * len(both)


def test_interrupting_it_ends_the_worker(candidates, job, monkeypatch, isolation):
    def interrupted(candidate, job):
        raise KeyboardInterrupt

    monkeypatch.setattr(beside, "prepare", interrupted)
    (slow,) = candidates(Slow("hangs"))
    with pytest.raises(KeyboardInterrupt):
        screen([slow], job)
    assert not isolation._held.process.alive
