"""A worker that starts in the background leaves the processor to its parent."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from fxopt.pipeline.isolation import Isolation, share

needs_groups = pytest.mark.skipif(
    not Path("/proc/self/autogroup").exists(), reason="the system does not group by session"
)


def nice(pid):
    return Path(f"/proc/{pid}/autogroup").read_text().split()[-1]


@pytest.fixture
def process():
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as made:
        yield made
        made.kill()


@needs_groups
def test_it_gives_way_and_is_equal_again(process):
    own = nice(os.getpid())
    share.give_way(process.pid)
    assert nice(process.pid) == "19"
    share.share_equally(process.pid)
    assert nice(process.pid) == "0"
    assert nice(os.getpid()) == own


def test_the_kernel_takes_one_change_at_a_time(monkeypatch):
    written = []

    def write(path, text):
        written.append((str(path), text))
        if len(written) < 3:
            raise BlockingIOError

    monkeypatch.setattr(Path, "write_text", write)
    monkeypatch.setattr(share, "_AGAIN_SECONDS", 0.0)
    share.share_equally(7)
    assert written == [("/proc/7/autogroup", "0")] * 3


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, ProcessLookupError])
def test_where_nothing_can_be_set_it_is_tried_once(monkeypatch, error):
    tried = []

    def write(path, text):
        tried.append(text)
        raise error

    monkeypatch.setattr(Path, "write_text", write)
    share.give_way(7)
    assert tried == ["19"]


def test_it_gives_way_only_while_it_starts(monkeypatch):
    isolation, gave_way = Isolation(), []
    worker = SimpleNamespace(give_way=lambda: gave_way.append(1))
    monkeypatch.setattr(isolation, "_worker", lambda: worker)
    isolation.warm_up()
    monkeypatch.setattr(isolation._held, "process", worker)
    isolation.warm_up()
    monkeypatch.setattr(isolation._held, "process", None)
    assert gave_way == [1]
