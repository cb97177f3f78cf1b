"""Instruments watch the manager at work, and may stop it."""

import time

import pytest

from fxopt.errors import InputError
from fxopt.ir import PassResult
from fxopt.pipeline import (
    Dumps,
    Instrument,
    Progress,
    SizeLimit,
    TimeLimit,
    Timing,
    Verification,
    instruments_for,
)
from tests.building import small_cnn
from tests.pipeline.support import Coarsen, ReluModules, SwapAdd, declare, run


def corrupts(program, _):
    program.module.head.weight.data.zero_()
    return PassResult(changed=True)


class Recorder(Instrument):
    def __init__(self):
        self.seen = []

    def begin(self, plan, program):
        self.seen.append(("begin", len(plan.passes)))

    def should_run(self, item, program):
        self.seen.append(("should_run", item.info.name))
        return "not today" if item.info.name == "coarsen" else None

    def before_pass(self, item, program):
        self.seen.append(("before", item.info.name))

    def check(self, item, before, after):
        self.seen.append(("check", before is not after))

    def after_pass(self, record, before, after):
        self.seen.append((record.status, after is not None))

    def end(self, program, records):
        self.seen.append(("end", len(records)))


def test_hooks_are_called_in_order():
    recorder = Recorder()
    records = run([ReluModules(), Coarsen(), declare(corrupts)], instruments=[recorder]).records
    assert recorder.seen == [
        ("begin", 3),
        ("should_run", "relu_modules"),
        ("before", "relu_modules"),
        ("check", True),
        ("applied", True),
        ("should_run", "corrupts"),
        ("before", "corrupts"),
        ("check", True),
        ("rolled back", True),
        ("should_run", "coarsen"),
        ("skipped", False),
        ("end", 3),
    ]
    assert records[2].reason == "not today"


def test_timing_adds_up():
    timing = Timing()
    records = run([ReluModules(), Coarsen(step=0.1)], instruments=[timing]).records
    assert list(timing.seconds) == ["relu_modules", "coarsen{step=0.1}"]
    assert sum(timing.seconds.values()) == pytest.approx(sum(r.seconds for r in records))
    lines = timing.table().splitlines()
    assert len(lines) == 3
    assert lines[-1].endswith("total")


def test_dumps_are_numbered_and_have_diffs(tmp_path):
    folder = tmp_path / "deep" / "inside"
    program = small_cnn()
    idle = declare(lambda p, _: PassResult(changed=False), "idle")
    outcome = run(
        [ReluModules(), idle, declare(corrupts, stage="numeric"), SwapAdd()],
        program,
        instruments=[Dumps(folder)],
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "00_captured.txt",
        "01_relu_modules.diff",
        "01_relu_modules.txt",
        "03_corrupts.rejected.diff",
        "03_corrupts.rejected.txt",
        "04_swap_add.diff",
        "04_swap_add.txt",
    ]
    assert (folder / "00_captured.txt").read_text() == program.text()
    assert (folder / "04_swap_add.txt").read_text() == outcome.program.text()
    diff = (folder / "01_relu_modules.diff").read_text().splitlines()
    assert [line for line in diff if line.startswith("-%")] == [
        line for line in map("-{}".format, program.text().splitlines()) if "relu" in line
    ]
    assert any(line.startswith("+%") and "ReLU" in line for line in diff)
    rejected = (folder / "03_corrupts.rejected.txt").read_text()
    assert rejected.startswith("# corrupts declares itself exact")


def test_dumps_of_a_program_that_cannot_be_shown(tmp_path):
    def wrecks(program, _):
        del program.module.head
        return PassResult(changed=True)

    records = run([declare(wrecks), SwapAdd()], instruments=[Dumps(tmp_path)]).records
    assert [record.status for record in records] == ["rolled back", "applied"]
    assert (tmp_path / "01_wrecks.rejected.txt").read_text().startswith("# wrecks breaks")


def test_dumps_need_a_folder_that_can_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot make the folder"):
        Dumps(tmp_path / "file" / "sub")


def test_time_limit_skips_what_remains():
    def slow(program, _):
        time.sleep(0.2)
        return ReluModules().run(program, None)

    limit = TimeLimit.of_seconds(0.15)
    records = run(
        [declare(slow, stage="prepare"), Coarsen(), SwapAdd()], instruments=[limit]
    ).records
    assert records[0].status in ("applied", "skipped")  # one that has begun is not interrupted
    assert [record.status for record in records[1:]] == ["skipped", "skipped"]
    assert all("time limit" in record.reason for record in records[1:])
    assert run([SwapAdd()], instruments=[TimeLimit.of_seconds(60)]).records[0].status == "applied"


def test_size_limit_rolls_back():
    program = small_cnn()
    nodes = len(program.nodes)
    fits = run([ReluModules()], program, instruments=[SizeLimit(nodes=nodes)])
    assert fits.records[0].status == "applied"
    record = run([ReluModules()], program, instruments=[SizeLimit(nodes=nodes - 1)]).records[0]
    assert record.status == "rolled back"
    assert f"size limit: {nodes} nodes" in record.reason
    record = run([Coarsen()], program, instruments=[SizeLimit(weight_bytes=10)]).records[0]
    assert "bytes of weights, where 10 are allowed" in record.reason


def test_progress_shows_a_line_when_a_pass_starts_and_ends():
    lines = []
    recorder = [Progress(lines.append)]
    run([ReluModules(), declare(corrupts), Coarsen(step=0.1)], instruments=recorder)
    assert lines[0] == "[1/3] relu_modules ..."
    assert lines[1] == "[1/3] relu_modules applied: 1 rewrite"
    assert lines[3].startswith("[2/3] corrupts rolled back: corrupts declares itself exact")
    assert lines[5] == "[3/3] coarsen{step=0.1} applied: 1 rewrite"


def test_verification_lets_honest_passes_through():
    records = run([ReluModules(), Coarsen()], instruments=[Verification()]).records
    assert [record.status for record in records] == ["applied", "applied"]


def test_the_instruments_of_an_ordinary_run(tmp_path):
    assert instruments_for() == []
    chosen = instruments_for(tmp_path, time.monotonic() + 60, print)
    assert [type(instrument) for instrument in chosen] == [TimeLimit, Dumps, Progress]
