"""Backends that are tried in another process: what they do there is told, and harms nobody."""

import _thread
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fxopt.cost import Latency
from fxopt.pipeline import compare
from fxopt.pipeline.assignment import Assignment, Share, whole
from fxopt.pipeline.isolation import Isolation
from fxopt.pipeline.isolation.folder import LockedFolder
from fxopt.pipeline.isolation.records import TrialResult, result_from_json
from fxopt.pipeline.isolation.wire import GarbageError, Inbox, receive, send
from fxopt_eager import Eager
from tests.building import Builder, aten, image, small_cnn
from tests.pipeline.bad_backends import Bad
from tests.pipeline.support import TARGET

PLUGIN = "tests.pipeline.bad_backends"
EXAMPLES = [[image(2)], [image(3)]]


def references(program, examples=EXAMPLES):
    with torch.no_grad():
        return [program(*flat) for flat in examples]


@pytest.fixture(scope="module")
def isolation():
    with Isolation(plugins=(PLUGIN,)) as made:
        made.warm_up()
        yield made


@pytest.fixture(scope="module")
def parcel(isolation):
    program = small_cnn()
    with isolation.pack(program, EXAMPLES, references(program)) as packed:
        assert packed.obstacle == ""
        yield packed


@pytest.fixture
def trial(isolation, parcel):
    def run(what, *, which=(0, 1), tolerance=1e-4, target=TARGET, **settings):
        rules = {
            name: settings.pop(name) for name in ("also", "within", "keep") if name in settings
        }
        timeout = settings.pop("timeout", 60.0)
        return isolation.trial(
            parcel,
            whole(Bad(what, **settings)),
            target,
            timeout=timeout,
            tolerance=tolerance,
            which=which,
            **rules,
        )

    return run


def worker_of(isolation):
    return isolation._held.process._process


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def gone(pid, seconds=10.0):
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not is_alive(pid)


def test_a_backend_that_is_right(trial):
    result = trial("is right", bits=16)
    assert (result.outcome, result.reason) == ("ran", "")
    assert [each.error for each in result.errors] == [0.0, 0.0]
    assert result.precisions == {"f16": 1}
    assert [(k.name, k.kind, k.precision) for k in result.kernels] == [("all", "Everything", "f16")]
    assert result.latency is not None
    assert len(result.latency.milliseconds) >= 6
    assert 0 < result.latency.median < 1000
    assert result.build_seconds > 0


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


@pytest.mark.parametrize(
    ("what", "outcome", "reason"),
    [
        ("raises", "refused", "RuntimeError: no such kernel"),
        ("calls exit", "refused", "SystemExit: enough"),
        ("supports nothing", "refused", "it does not like it"),
        ("is right", "ran", ""),
    ],
)
def test_what_is_said_is_told_and_the_worker_stays(isolation, trial, what, outcome, reason):
    trial("is right")
    before = worker_of(isolation).pid
    result = trial(what)
    assert (result.outcome, result.reason) == (outcome, reason)
    assert worker_of(isolation).pid == before


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("is wrong", (0.5, 0.5)),
        ("is wrong at other sizes", (0.0, None)),
        ("gives another shape", (float("inf"), float("inf"))),
        ("writes to its input", (float("inf"), float("inf"))),
    ],
)
def test_wrong_outputs_are_measured_by_error_and_not_by_time(trial, what, expected):
    result = trial(what)
    assert result.outcome == "ran"
    assert result.latency is None
    for found, wanted in zip(result.errors, expected, strict=True):
        assert found.error == pytest.approx(wanted) if wanted is not None else found.error > 0.1
    assert result.errors[0].where


def test_only_the_examples_that_are_asked_for_are_run(trial):
    assert [each.error for each in trial("is wrong at other sizes", which=[0]).errors] == [0.0]
    (other,) = trial("is wrong at other sizes", which=[1]).errors
    assert other.error > 0.1


def test_what_is_fast_is_run_at_other_sizes_as_well(trial):
    wrong = "is wrong at other sizes"
    slow = trial(wrong, which=[0], also=[1], within=1e-6)
    assert (slow.others, slow.outcome) == ((), "ran")
    fast = trial(wrong, which=[0], also=[1], within=1e6)
    assert [each.error for each in fast.errors] == [0.0]
    assert fast.latency is not None
    (other,) = fast.others
    assert other.error > 0.1


def test_what_fails_at_other_sizes_is_refused_and_not_kept(isolation, trial):
    result = trial("fails at other sizes", which=[0], also=[1], keep="it")
    assert result.outcome == "refused"
    assert result.reason == "at another batch size: RuntimeError: no such size"
    assert not isolation.holds("it")


def test_without_a_tolerance_everything_is_timed(trial):
    assert trial("is wrong", tolerance=None).latency is not None


def test_what_is_printed_goes_nowhere_near_the_terminal_or_the_answers(trial, capfd):
    assert trial("prints").outcome == "ran"
    out, err = capfd.readouterr()
    assert out == err == ""


def test_threads_and_settings_reach_the_worker(trial):
    result = trial("counts threads", target=replace(TARGET, threads=3))
    assert result.reason == "RuntimeError: 3 threads"


def test_the_worker_has_the_variables_that_the_caller_has_now(trial, monkeypatch):
    def told():
        return trial("tells a variable", path="FXOPT_TEST_CACHE").reason

    assert told() == "RuntimeError: FXOPT_TEST_CACHE is None"
    monkeypatch.setenv("FXOPT_TEST_CACHE", "there")  # long after the worker has started
    assert told() == "RuntimeError: FXOPT_TEST_CACHE is there"
    monkeypatch.delenv("FXOPT_TEST_CACHE")
    assert told() == "RuntimeError: FXOPT_TEST_CACHE is None"


def test_shares_of_a_program_and_native_backends(isolation, parcel):
    nodes = frozenset(n.name for n in small_cnn().nodes if n.op == "call_module")
    first = frozenset(sorted(nodes)[:1])
    for assignment in (Assignment((Share(Bad(), first),)), whole(Eager())):
        result = isolation.trial(parcel, assignment, TARGET, timeout=60)
        assert (result.outcome, result.reason) == ("ran", "")
        assert result.errors[0].error == 0.0
    wrong = Assignment((Share(Bad("is wrong"), first),))
    assert isolation.trial(parcel, wrong, TARGET, timeout=60).errors[0].error > 0.01


def test_what_cannot_be_handed_over_is_told_apart(isolation, parcel):
    @dataclass(frozen=True)
    class Own(Eager):
        pass

    def outcome(backend, parcel=parcel):
        result = isolation.trial(parcel, whole(backend), TARGET, timeout=60)
        return result.outcome, result.reason

    assert outcome(Own())[0] == "not isolated"
    assert "no plugin brings" in outcome(Own())[1]
    assert outcome(Bad(setting=object()))[0] == "not isolated"

    class Mine(nn.Module):
        def forward(self, x):
            return x + 1

    b = Builder(mine=Mine())
    program = b.program(b.call("mine", b.input("x", 2, 4)))
    packed = isolation.pack(program, [[torch.ones(2, 4)]], [[torch.ones(2, 4)]])
    assert not packed.program.exists()
    assert outcome(Eager(), packed)[0] == "not isolated"
    assert "Mine" in outcome(Eager(), packed)[1]


def test_inputs_and_outputs_that_are_no_tensors_and_strides(isolation):
    b = Builder()
    x = b.input("x", 4, 3)
    b.graph.placeholder("scale").meta["val"] = 2.0
    scale = next(node for node in b.graph.nodes if node.name == "scale")
    program = b.program(b.call(aten.mul.Scalar, x, 3.0), b.call(aten.relu.default, x), scale)
    examples = [[torch.randn(3, 4).t(), 2.0], [torch.randn(7, 3), 2.0]]
    with isolation.pack(program, examples, references(program, examples)) as packed:
        result = isolation.trial(packed, whole(Eager()), TARGET, timeout=60, which=[0, 1])
    assert [each.error for each in result.errors] == [0.0, 0.0]
    assert not packed.program.exists()
    assert not packed.examples.exists()


def test_threads_take_turns(trial):
    results = {}
    kinds = ["raises", "is right", "supports nothing", "is wrong"]
    threads = [threading.Thread(target=lambda k=k: results.update({k: trial(k)})) for k in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcomes = {kind: results[kind].outcome for kind in kinds}
    assert outcomes == dict(zip(kinds, ("refused", "ran", "refused", "ran"), strict=True))
    assert results["is wrong"].latency is None


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


def test_results_survive_the_wire():
    reading, writing = os.pipe()
    errors = (compare([torch.ones(2)], [torch.zeros(3)]), compare([], []))
    result = TrialResult("ran", errors=errors, precisions={"f32": 2}, latency=Latency((1.5, 2.0)))
    send(writing, asdict(result))
    assert result_from_json(receive(reading, Inbox())) == result
    os.close(writing)
    assert receive(reading, Inbox()) is None
    os.close(reading)


def test_garbage_is_no_message():
    for data in (b"\xff\xff\xff\xffgarbage", b"\x02\x00\x00\x00[]", b"\x03\x00\x00\x00{{{"):
        inbox = Inbox()
        inbox.feed(data)
        with pytest.raises(GarbageError):
            inbox.next()
    inbox = Inbox()
    for byte in b"\x02\x00\x00\x00{}":
        assert inbox.next() is None
        inbox.feed(bytes([byte]))
    assert inbox.next() == {}
