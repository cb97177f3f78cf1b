"""Which trials are spared, when trials take what a test says they take."""

from dataclasses import dataclass

import pytest

from fxopt.pipeline.assignment import whole
from fxopt.pipeline.lowering import exact_version, reduced_version
from fxopt.pipeline.lowering import rounds as rounds_module
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.version import LOSSY, Version
from fxopt.plugin import Backend, BackendInfo
from tests.building import small_cnn


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
    """Runs the rounds; trials take the given milliseconds."""
    tried = []

    def run(milliseconds):
        def screen(candidates, job, rivals=()):
            for candidate in candidates:
                tried.append(name_of(candidate))
                candidate.note(milliseconds=milliseconds[name_of(candidate)])

        monkeypatch.setattr(rounds_module, "screen", screen)
        candidates = []
        for name in milliseconds:
            version, kind, precision = name.split()
            backend = {"quick": Quick, "other": Other, "slow": Slow}[kind](precision)
            candidates.append(Candidate(versions[version], whole(backend)))
        names.update({id(c): name for c, name in zip(candidates, milliseconds, strict=True)})
        rounds_module.screen_in_rounds(candidates, None)
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
    tried, reasons = screened({**exact, "reduced quick bf16": 7.0, "reduced slow bf16": 6.0})
    assert tried[-1] == "reduced slow bf16"
    assert reasons == {}
