"""A worker's life: how it starts, dies, is replaced, and leaves nothing behind."""

import _thread
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from fxopt.pipeline.assignment import whole
from fxopt.pipeline.isolation import Isolation
from fxopt.pipeline.isolation.folder import LockedFolder
from fxopt.pipeline.isolation.wire import send
from fxopt_eager import Eager
from tests.building import small_cnn
from tests.pipeline.isolated import EXAMPLES, gone, is_alive, references, worker_of
from tests.pipeline.support import TARGET


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such order")
def test_where_memory_runs_out_the_worker_goes_first(trial, isolation):
    trial("is right")
    order = Path(f"/proc/{worker_of(isolation).pid}/oom_score_adj")
    assert order.read_text() == "1000\n"


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="no groups by session")
def test_what_is_asked_of_it_does_not_give_way(trial, isolation):
    trial("is right")
    setting = Path(f"/proc/{worker_of(isolation).pid}/autogroup")
    assert setting.read_text().endswith("nice 0\n")


@pytest.fixture
def interruptible():
    """A shell that starts tests in the background has them ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupting_the_caller_ends_the_worker(isolation, trial, tmp_path, interruptible):
    path = tmp_path / "pid"

    def interrupt():
        while not (path.exists() and path.read_text()):
            time.sleep(0.02)
        # not os.kill(): where AMX is in use, a signal's frame does not fit the small stack that
        # faulthandler, which pytest switches on, gives to handlers
        _thread.interrupt_main()

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        trial("hangs with children", path=str(path))
    assert gone(worker_of(isolation).pid)
    assert gone(int(path.read_text()))


def test_a_crash_is_told_with_the_last_line_and_the_next_trial_has_a_new_worker(isolation, trial):
    result = trial("crashes")
    assert result.outcome == "died"
    assert result.reason == (
        "its process died of SIGSEGV while compiling; it printed last: about to read address 0"
    )
    assert result.log == "about to read address 0"
    before = worker_of(isolation).pid
    result = trial("exits when it runs")
    assert result.reason == "its process ended with exit code 3 while running"
    assert worker_of(isolation).pid != before


def test_one_that_hangs_is_killed_with_all_it_has_started(isolation, trial, tmp_path):
    path = tmp_path / "pid"
    result = trial("hangs with children", timeout=3.0, path=str(path))
    assert result.outcome == "died"
    assert result.reason == "no answer after 3 s, while compiling"
    assert not is_alive(worker_of(isolation).pid)
    assert gone(int(path.read_text()))


def test_closing_removes_everything_and_a_later_use_starts_again():
    isolation = Isolation()
    program = small_cnn()
    packed = isolation.pack(program, EXAMPLES, references(program))
    folder = packed.program.parent
    isolation.warm_up()
    pid = worker_of(isolation).pid
    isolation.close()
    assert gone(pid)
    assert not folder.exists()
    isolation.close()
    isolation.warm_up()
    assert worker_of(isolation).pid != pid
    isolation.close()


SCRIPT = """
import sys, time
sys.path[:] = {path!r}
from tests.building import *
from tests.pipeline.support import TARGET
from tests.pipeline.bad_backends import Bad
from fxopt.pipeline.isolation import Isolation
from fxopt.pipeline.isolation.folder import LockedFolder
from fxopt.pipeline.assignment import whole
isolation = Isolation(plugins=("tests.pipeline.bad_backends",))
program = small_cnn()
parcel = isolation.pack(program, [[image()]], [program(image())])
for what in ("is right", "hangs with the lock"):
    backend = Bad(what, path={pid!r})
    print(isolation.trial(parcel, whole(backend), TARGET, timeout=60).outcome, flush=True)
"""


def start_script(pid):
    path = [entry or os.getcwd() for entry in sys.path]
    code = SCRIPT.format(path=path, pid=str(pid))
    environment = {**os.environ, "TMPDIR": str(pid.parent)}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_one_that_is_forgotten_closes_itself():
    isolation = Isolation()
    isolation.warm_up()
    folder, pid = isolation._held.folder(), worker_of(isolation).pid
    assert isolation._finalizer.atexit  # the same happens at interpreter exit
    del isolation
    gc.collect()
    assert gone(pid)
    assert not folder.exists()


def test_folders_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    used, left, young = LockedFolder(), LockedFolder(), LockedFolder()
    for folder in (left, young):
        os.close(folder._lock)  # as the end of a process does
        folder._lock = None
    for folder in (used, left):
        os.utime(folder.path, (0, 0))
    other = tmp_path / "fxopt-trials.txt"
    other.write_text("")
    new = LockedFolder()
    assert set(tmp_path.iterdir()) == {used.path, young.path, new.path, other}
    used.remove()
    assert not used.path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="pipes have no signals")
def test_the_worker_ends_with_its_parent_even_where_it_holds_the_interpreter(tmp_path):
    """The parent is a script without a main guard."""
    pid = tmp_path / "pid"
    script = start_script(pid)
    while not (pid.exists() and pid.read_text()):
        assert script.poll() is None
        time.sleep(0.05)
    worker = int(pid.read_text())
    assert is_alive(worker)
    script.kill()
    script.wait()
    assert gone(worker)
    assert script.communicate()[0].split() == ["ran"]


def test_an_idle_worker_ends_with_its_parent_and_cleans_up():
    isolation = Isolation()
    isolation.warm_up()
    process, folder = isolation._held.process, isolation._held.folder()
    process.ask({"forget": []}, 60.0)  # it is idle, not starting, once it has answered
    os.close(process._requests)
    assert process._process.wait(timeout=10) == -signal.SIGKILL  # it ends its group
    assert not folder.exists()
    process._requests = os.open(os.devnull, os.O_WRONLY)  # for the orderly end to close
    isolation.close()


def test_requests_that_come_while_it_works_do_not_end_it(isolation):
    """The system may signal a request after it was read, and that one is served by then."""
    isolation.warm_up()
    process = isolation._held.process
    process.ask({"forget": []}, 60.0)
    for _ in range(9):
        send(process._requests, {"forget": []})
        time.sleep(0.05)  # one takes longer than that
    assert [process._wait("result", 60.0) for _ in range(9)] == [{"result": {}}] * 9


def test_a_worker_that_does_not_start_is_no_fault_of_the_backend(parcel, monkeypatch):
    with Isolation() as broken, monkeypatch.context() as patch:
        patch.setattr("fxopt.pipeline.isolation.process._BOOTSTRAP", "print('no torch'); exit(1)")
        for _ in range(2):
            result = broken.trial(parcel, whole(Eager()), TARGET, timeout=60)
            assert result.outcome == "not isolated"
            assert result.reason == (
                "its process ended with exit code 1 while starting; it printed last: no torch"
            )
    with Isolation(plugins=("no_such_module",)) as broken:
        result = broken.trial(parcel, whole(Eager()), TARGET, timeout=60)
    assert result.outcome == "not isolated"
    assert "no_such_module" in result.reason
