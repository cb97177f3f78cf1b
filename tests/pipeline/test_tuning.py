"""The tuning cache: it spares builds, and no file in it can do harm."""

import json
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import fxopt
from fxopt.pipeline.lowering.tuning import Timing, TuningFile, cache_folder, updated
from fxopt.plugin import Backend, BackendInfo, Executable, Lowering
from tests.api.conftest import model, plugins, x  # noqa: F401 - fixtures

BUILT = []


class Code(Executable):
    def __init__(self, program):
        self._program = program

    def __call__(self, *inputs):
        return self._program.module(*inputs)


class Slow(Code):
    def __call__(self, *inputs):
        for _ in range(20):
            self._program.module(*inputs)
        return self._program.module(*inputs)


class Compile(Lowering):
    def __init__(self, program, code):
        self._program, self._code = program, code

    def compile(self, inputs):
        return self._code(self._program)


@dataclass(frozen=True)
class Quick(Backend):
    info = BackendInfo("quick", ("cpu",))

    def lower(self, program, inputs, target):
        BUILT.append("quick")
        return Compile(program, Code)


@dataclass(frozen=True)
class Sluggish(Backend):
    info = BackendInfo("sluggish", ("cpu",))

    def lower(self, program, inputs, target):
        BUILT.append("sluggish")
        return Compile(program, Slow)


@pytest.fixture
def optimize(model, x, plugins):  # noqa: F811
    plugins(backends=[Quick, Sluggish])

    def run(batch=2):
        BUILT.clear()
        inputs = x.repeat(batch, 1, 1, 1)[:batch]
        fast = fxopt.optimize(model, (inputs,), backends=["quick", "sluggish"], passes="fold_bn")
        with torch.no_grad():
            assert (fast(inputs) - model(inputs)).abs().max() < 1e-4
        return fast.report.regions[0]

    return run


def files(folder):
    return list(folder.rglob("*.json"))


def test_what_was_slow_is_not_built_again(optimize, own_cache):
    optimize()
    assert set(BUILT) == {"quick", "sluggish"}
    assert len(files(own_cache)) == 1
    region = optimize()
    assert set(BUILT) == {"quick"}
    record = next(c for c in region.candidates if c.backend == "sluggish")
    assert "when last measured here" in record.reason


def test_other_sizes_are_measured_anew(optimize, own_cache):
    optimize(batch=2)
    optimize(batch=3)
    assert set(BUILT) == {"quick", "sluggish"}
    assert len(files(own_cache)) == 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "\x00\xff", '{"format": 99}', '{"format": 2, "key": "of another job"}'],
    ids=["empty", "truncated", "a list", "no text", "a newer format", "of another job"],
)
def test_a_spoilt_file_is_ignored(optimize, own_cache, text):
    optimize()
    (file,) = files(own_cache)
    file.write_text(text)
    optimize()
    assert set(BUILT) == {"quick", "sluggish"}
    assert json.loads(file.read_text())["timings"]


def test_nonsense_in_a_file_cannot_take_every_candidate_out(optimize, own_cache):
    optimize()
    (file,) = files(own_cache)
    held = json.loads(file.read_text())
    spoilt = {"quick/exact": -1, "sluggish/exact": "fast", "other": 1e-9, "nan": None}
    held["timings"] = {name: {"milliseconds": value} for name, value in spoilt.items()}
    held["timings"]["eager/exact"] = 0.5
    file.write_text(json.dumps(held))
    optimize()
    assert set(BUILT) == {"quick", "sluggish"}


@pytest.mark.parametrize(("raced", "behind"), [(True, 1.3), (False, 2.1)])
def test_noise_takes_nothing_out(raced, behind):
    assert Timing(10.0 * behind, raced).far_behind(10.0)
    assert not Timing(10.0 * (behind - 0.15), raced).far_behind(10.0)


def test_what_was_measured_at_another_speed_is_held_against_the_new():
    known = {"best": Timing(10.0, True), "next": Timing(11.0, True), "slow": Timing(13.0, True)}
    found = {"best": Timing(20.0, True), "next": Timing(22.0, True), "new": Timing(30.0, False)}
    now = updated(known, found)
    assert now["slow"].milliseconds == pytest.approx(26.0)
    assert {name: now[name] for name in found} == found
    assert updated({}, found) == found
    assert updated(known, {}) == known


def test_a_slow_day_does_not_put_what_was_slow_in_front(optimize, own_cache):
    optimize()
    (file,) = files(own_cache)
    held = json.loads(file.read_text())
    for each in held["timings"].values():  # as if the machine had been a hundred times as fast
        each["milliseconds"] /= 100
    file.write_text(json.dumps(held))
    optimize()
    optimize()
    assert set(BUILT) == {"quick"}


def test_a_user_without_a_home_folder(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FXOPT_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    file = TuningFile(cache_folder() / "tuning" / "job.json", "job")
    assert file.read() == {}


def test_a_folder_that_cannot_be_written_to_is_no_failure(optimize, own_cache):
    own_cache.write_text("a file where the folder should be")
    assert optimize().chosen.backend
    assert own_cache.is_file()


def test_writers_and_readers_do_not_disturb_each_other(tmp_path):
    file = TuningFile(tmp_path / "tuning" / "job.json", "job")
    whole = [
        {f"backend{i}": Timing(1.0 + i, raced=True) for i in range(500)},
        {f"backend{i}": Timing(2.0, raced=False) for i in range(9)},
    ]
    file.write(whole[0])
    seen = []

    def write(held):
        for _ in range(30):
            file.write(held)

    def read():
        seen.extend(file.read() for _ in range(100))

    tasks = [threading.Thread(target=write, args=(held,)) for held in whole]
    tasks += [threading.Thread(target=read) for _ in range(2)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert len(seen) == 200
    assert all(held in whole for held in seen)
    assert [path.name for path in file.path.parent.iterdir()] == ["job.json"]
