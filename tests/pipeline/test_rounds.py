"""Which trials are spared, when trials take what a test says they take."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from fxopt.cost import Target, multiply_adds
from fxopt.pipeline.assignment import whole
from fxopt.pipeline.lowering import exact_version, reduced_version
from fxopt.pipeline.lowering import rounds as rounds_module
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.version import LOSSY, Version
from fxopt.plugin import Backend, BackendInfo
from tests.building import image, small_cnn

CPU = Target("cpu", torch.device("cpu"), threads=3)


@dataclass(frozen=True)
class Quick(Backend):
    precision: str = "f32"
    info = BackendInfo("quick", ("cpu",))

    def lower(self, program, inputs, target):
        raise AssertionError("must not be called")


@dataclass(frozen=True)
class Other(Quick):
    info = BackendInfo("other", ("cpu",))


@dataclass(frozen=True)
class Slow(Quick):
    info = BackendInfo("slow", ("cpu",), builds_slowly=True)


@pytest.fixture
def versions():
    program = small_cnn()
    exact = exact_version(program, [[], []])
    return {
        "exact": exact,
        "reduced": reduced_version(exact, 0.1),
        "lossy": Version(LOSSY, program, 0.1, [[], []]),
    }


@pytest.fixture
def screened(versions, monkeypatch):
    """Runs the rounds; trials take the given milliseconds, and float32 ``peak_ms`` at best."""
    tried = []

    def run(milliseconds, peak_ms=1e-3, target=CPU):
        def screen(candidates, job, rivals=(), judge=None, at_once=False):
            for candidate in sorted(candidates, key=lambda c: c.builds_slowly):
                judge(candidate)
                if candidate.record.reason:
                    continue
                tried.append(name_of(candidate))
                candidate.note(milliseconds=milliseconds[name_of(candidate)])

        monkeypatch.setattr(rounds_module, "screen", screen)
        candidates = []
        for name in milliseconds:
            version, kind, precision = name.split()
            backend = {"quick": Quick, "other": Other, "slow": Slow}[kind](precision)
            candidates.append(Candidate(versions[version], whole(backend)))
        names.update({id(c): name for c, name in zip(candidates, milliseconds, strict=True)})
        work = sum(multiply_adds(versions["exact"].program).values())
        peak = work / (1.5 * peak_ms)
        monkeypatch.setattr(rounds_module, "peak_products", lambda threads: peak * (threads == 3))
        job = SimpleNamespace(target=target, examples=[[image()]])
        rounds_module.screen_in_rounds(candidates, job)
        reasons = {name_of(c): c.record.reason for c in candidates if c.record.reason}
        return tried, reasons

    names = {}

    def name_of(candidate):
        return names[id(candidate)]

    return run


def test_what_is_asked_for_goes_first_and_what_builds_fast(screened):
    tried, reasons = screened(
        {
            "exact slow f32": 9.0,
            "exact quick f32": 9.0,
            "lossy slow f32": 8.0,
            "lossy quick f32": 8.0,
        }
    )
    assert tried == ["lossy quick f32", "lossy slow f32", "exact quick f32", "exact slow f32"]
    assert reasons == {}


def test_only_what_is_asked_for_is_built_before_it_is_known_what_others_take(versions, monkeypatch):
    told = []

    def screen(candidates, job, at_once=False, **_):
        told.append(([c.version.name for c in candidates], at_once))

    monkeypatch.setattr(rounds_module, "screen", screen)
    kinds = [Candidate(versions[name], whole(Quick())) for name in ("exact", "lossy")]
    rounds_module.screen_in_rounds(kinds, SimpleNamespace(target=CPU))
    assert told == [(["lossy"], True), (["exact"], False)]


def test_a_version_that_is_hopeless_elsewhere_is_not_built_slowly(screened):
    tried, reasons = screened(
        {
            "exact quick f32": 21.0,
            "exact slow f32": 1.0,
            "lossy quick f32": 10.0,
            "lossy slow f32": 9.0,
        }
    )
    assert "exact slow f32" not in tried
    expected = "not tried: elsewhere the exact version takes 2.1 times as long"
    assert reasons == {"exact slow f32": expected}


def test_a_precision_that_is_slower_elsewhere_is_not_built_slowly(screened):
    times = {"lossy quick f32": 12.0, "lossy quick bf16": 10.0}
    tried, reasons = screened({**times, "lossy slow f32": 1.0, "lossy slow bf16": 9.0})
    assert reasons == {"lossy slow f32": "not tried: elsewhere bf16 is 1.2 times as fast"}
    assert "lossy slow bf16" in tried


def test_a_precision_that_the_slow_one_has_alone_is_built(screened):
    times = {"lossy quick f32": 12.0, "lossy quick bf16": 10.0}
    _, reasons = screened({**times, "lossy slow f32": 1.0})
    assert reasons == {}


def test_where_nothing_builds_fast_nothing_is_spared(screened):
    tried, reasons = screened(
        {"exact slow f32": 90.0, "lossy slow f32": 9.0, "lossy slow bf16": 5.0}
    )
    assert len(tried) == 3
    assert reasons == {}


def test_a_backend_that_is_far_behind_is_not_tried_on_other_versions(screened):
    tried, reasons = screened(
        {
            "exact quick f32": 10.0,
            "exact other f32": 1.0,
            "lossy quick f32": 8.0,
            "lossy other f32": 17.0,
        }
    )
    assert "exact other f32" not in tried
    assert reasons == {"exact other f32": "not tried: slower than quick on the lossy version"}


def test_backends_without_a_lower_precision_take_no_place_among_those_that_have_it(screened):
    exact = {"exact quick f32": 9.0, "exact other f32": 9.5, "exact slow f32": 12.0}
    reduced = {"reduced quick bf16": 7.0, "reduced slow bf16": 6.0}
    tried, reasons = screened({**exact, **reduced})
    assert tried[:2] == [*reduced]
    assert set(tried[2:]) == set(exact)
    assert reasons == {}


def test_a_lower_precision_goes_first_and_may_spare_float32(screened):
    exact = {"exact quick f32": 9.0, "exact slow f32": 12.0}
    tried, reasons = screened({**exact, "reduced slow bf16": 6.0}, peak_ms=6.1)
    assert tried == ["reduced slow bf16"]
    assert reasons.keys() == exact.keys()


def test_the_best_backend_says_whether_another_version_is_worth_the_others(screened):
    tried, reasons = screened(
        {
            "exact other f32": 1.0,
            "exact quick f32": 21.0,
            "lossy other f32": 12.0,
            "lossy quick f32": 10.0,
        }
    )
    assert tried[2:] == ["exact quick f32"]
    expected = "not tried: elsewhere the exact version takes 2.1 times as long"
    assert reasons == {"exact other f32": expected}


IN_FLOAT = {"exact slow f32": 1.0, "lossy slow f32": 10.0}


def test_what_arithmetic_alone_makes_slower_is_not_tried(screened):
    tried, reasons = screened(IN_FLOAT, peak_ms=10.1)
    assert tried == ["lossy slow f32"]
    expected = "not tried: at this machine's peak the exact version takes 10.1 ms, another one 10"
    assert reasons == {"exact slow f32": expected}


def test_what_the_peak_leaves_a_chance_is_tried(screened):
    assert screened(IN_FLOAT, peak_ms=9.9) == (["lossy slow f32", "exact slow f32"], {})


def test_arithmetic_is_that_of_the_example_and_not_of_the_capture(screened, monkeypatch):
    monkeypatch.setattr(rounds_module, "batch_scale", lambda program, flat: len(flat[0]) / 4)
    tried, _ = screened(IN_FLOAT, peak_ms=19.9)
    assert tried == ["lossy slow f32", "exact slow f32"]
    assert screened(IN_FLOAT, peak_ms=20.1)[1].keys() == {"exact slow f32"}


def test_the_peak_of_the_cpu_says_nothing_of_a_gpu(screened):
    tried, _ = screened(IN_FLOAT, peak_ms=10.1, target=replace(CPU, name="cuda"))
    assert "exact slow f32" in tried


def test_the_peak_of_float32_says_nothing_of_bfloat16(screened):
    times = {"reduced slow bf16": 9.0, "lossy slow f32": 10.0}
    tried, _ = screened(times, peak_ms=10.1)
    assert "reduced slow bf16" in tried
