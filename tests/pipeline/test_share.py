"""A worker that starts in the background leaves the processor to its parent."""

import errno
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from fxopt.pipeline.isolation import Isolation, share


def group(pid):
    """The line of a process's group; empty in control groups, whose times are set otherwise."""
    setting = Path(f"/proc/{pid}/autogroup")
    return setting.read_text() if setting.exists() else ""


def nice(pid):
    return group(pid).split()[-1]


@pytest.fixture
def process():
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as made:
        yield made
        made.kill()


def test_it_gives_way_and_is_equal_again(process):
    if not group(process.pid):
        pytest.skip("the system does not group by session here")
    own = group(os.getpid())
    share.give_way(process.pid)
    assert nice(process.pid) == "19"
    share.share_equally(process.pid)
    assert nice(process.pid) == "0"
    assert group(os.getpid()) == own


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


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError, PermissionError, ProcessLookupError, OSError(errno.EINVAL, "no group")],
)
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
