"""Backends that are tried in another process: what comes of it is told."""

import os
import threading
from dataclasses import asdict, dataclass, replace

import pytest
import torch
from torch import nn

from fxopt.cost import Latency
from fxopt.pipeline import compare
from fxopt.pipeline.assignment import Assignment, Share, whole
from fxopt.pipeline.isolation.records import TrialResult, result_from_json
from fxopt.pipeline.isolation.wire import GarbageError, Inbox, receive, send
from fxopt_eager import Eager
from tests.building import Builder, aten, small_cnn
from tests.pipeline.bad_backends import Bad
from tests.pipeline.isolated import references, worker_of
from tests.pipeline.support import TARGET


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
