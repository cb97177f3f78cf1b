"""Backends that misbehave are excluded with a reason, and the next best one is used."""

import time
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import fxopt
from fxopt.pipeline.lowering.tuning import Timing, TuningFile
from fxopt.plugin import (
    Backend,
    BackendError,
    BackendInfo,
    Executable,
    Lossy,
    Lowering,
    Pass,
    PassInfo,
)


class Code(Executable):
    def __init__(self, function):
        self._function = function

    def __call__(self, *inputs):
        return self._function(*inputs)


class Compile(Lowering):
    def __init__(self, function):
        self._function = function

    def compile(self, inputs):
        return Code(self._function)


@dataclass(frozen=True)
class Missing(Backend):
    info = BackendInfo("missing", ("cpu",), extra="pip install 'fxopt[missing]'")

    def unavailable(self):
        return "the package missing is not installed"

    def lower(self, program, inputs, target):
        raise AssertionError("must not be called")


@dataclass(frozen=True)
class Wrong(Backend):
    info = BackendInfo("wrong", ("cpu",))

    def lower(self, program, inputs, target):
        return Compile(lambda *given: tuple(t * 1.01 for t in program.module(*given)))


@dataclass(frozen=True)
class WrongElsewhere(Backend):
    """Right and very fast at the example's batch size, wrong at any other."""

    info = BackendInfo("wrong_elsewhere", ("cpu",))

    def lower(self, program, inputs, target):
        size, cached = len(inputs[0]), program.module(*inputs)

        def call(*given):
            if len(given[0]) == size:
                return cached
            return tuple(t + 1 for t in program.module(*given))

        return Compile(call)


@dataclass(frozen=True)
class Fails(Backend):
    info = BackendInfo("fails", ("cpu",))

    def lower(self, program, inputs, target):
        raise KeyError("no such kernel")


@dataclass(frozen=True)
class FailsAtRun(Backend):
    info = BackendInfo("fails_at_run", ("cpu",))

    def lower(self, program, inputs, target):
        def call(*given):
            raise RuntimeError("illegal instruction")

        return Compile(call)


@dataclass(frozen=True)
class NotANumber(Backend):
    info = BackendInfo("not_a_number", ("cpu",))

    def lower(self, program, inputs, target):
        return Compile(lambda *given: tuple(t * float("nan") for t in program.module(*given)))


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (Wrong, "output error"),
        (WrongElsewhere, "another batch size"),
        (Fails, "no such kernel"),
        (FailsAtRun, "illegal instruction"),
        (NotANumber, "output error"),
    ],
)
def test_excluded_with_a_reason(model, x, plugins, backend, reason):
    plugins(backends=[backend])
    fast = fxopt.optimize(model, (x,), backends=[backend.info.name, "eager"])
    region = fast.report.regions[0]
    record = next(c for c in region.candidates if c.backend == backend.info.name)
    assert reason in record.reason
    assert region.chosen.backend != backend.info.name
    with torch.no_grad():
        assert (fast(x) - model(x)).abs().max() < 1e-4


def test_one_that_is_missing_is_noted(model, x, plugins):
    plugins(backends=[Missing])
    fast = fxopt.optimize(model, (x,), time_limit=0)
    assert any("missing" in note and "not installed" in note for note in fast.report.notes)


def test_slower_than_the_original_is_not_kept(model, x, plugins):
    @dataclass(frozen=True)
    class Slow(Backend):
        info = BackendInfo("slow", ("cpu",))

        def lower(self, program, inputs, target):
            def call(*given):
                time.sleep(0.02)
                return program.module(*given)

            return Compile(call)

    plugins(backends=[Slow])
    fast = fxopt.optimize(model, (x,), backends=["slow"])
    assert fast.report.regions[0].chosen.backend != "slow"
    assert not fast.lowered()


@dataclass(frozen=True)
class Coarse(Backend):
    """Exact, or in a variant of less precision."""

    info = BackendInfo("coarse", ("cpu",))
    error: float = 0.0

    @property
    def label(self):
        return "coarse" if self.error else "fine"

    def variants(self, program, target, exact):
        return [self] if exact else [self, Coarse(error=0.01)]

    def lower(self, program, inputs, target):
        return Compile(lambda *x: tuple(t * (1 + self.error) for t in program.module(*x)))


@pytest.mark.parametrize(("limit", "reason"), [(0.02, ""), (0.001, "output error")])
def test_a_drift_that_is_allowed_lets_less_precise_variants_race(model, x, plugins, limit, reason):
    plugins(backends=[Coarse])
    fast = fxopt.optimize(model, (x,), backends=["coarse"], max_drift=limit)
    candidates = fast.report.regions[0].candidates
    tried = {(c.backend, c.version): c for c in candidates}
    assert {("fine", "exact"), ("coarse", "reduced")} <= set(tried)
    assert ("fine", "reduced") not in tried
    assert reason in tried["coarse", "reduced"].reason
    with torch.no_grad():
        assert (fast(x) - model(x)).norm() <= limit * model(x).norm()


@pytest.mark.parametrize("limit", [0.02, 0.001, 0.0])
def test_a_drop_that_is_allowed_lets_them_race_too_and_is_kept(model, x, plugins, limit):
    def score(module):
        with torch.no_grad():
            return 1 - float((module(x) - model(x)).norm() / model(x).norm())

    plugins(backends=[Coarse])
    fast = fxopt.optimize(model, (x,), backends=["coarse"], evaluate=score, max_drop=limit)
    tried = {(c.backend, c.version): c for c in fast.report.regions[0].candidates}
    assert (("coarse", "reduced") in tried) == (limit > 0)
    assert score(fast) >= 1 - limit - 1e-6
    if 0 < limit < 0.01 and (reason := tried["coarse", "reduced"].reason):
        assert "the score drops" in reason


def test_without_a_drift_only_exact_variants_race(model, x, plugins):
    plugins(backends=[Coarse])
    fast = fxopt.optimize(model, (x,), backends=["coarse"])
    assert {c.backend for c in fast.report.regions[0].candidates} == {"fine", "torch"}


@dataclass(frozen=True)
class Tunable(Backend):
    """Has a setting that is only worth a try once it has won."""

    info = BackendInfo("tunable", ("cpu",))
    tuned: bool = False
    wrong: bool = False

    @property
    def label(self):
        return "tunable" + " tuned" * self.tuned + " wrong" * self.wrong

    def tunings(self, program, inputs, target, milliseconds):
        return [replace(self, tuned=True), replace(self, tuned=True, wrong=True)]

    def lower(self, program, inputs, target):
        expected = {len(inputs[0]): program.module(*inputs)}

        def call(*given):  # faster than anything that computes
            if len(given[0]) not in expected:
                expected[len(given[0])] = program.module(*given)
            if not self.tuned:
                time.sleep(1e-4)
            return tuple(t * (1 + self.wrong) for t in expected[len(given[0])])

        return Compile(call)


@dataclass(frozen=True)
class Slow(Tunable):
    """Loses unless it is tuned, so nothing of its own asks for that."""

    def lower(self, program, inputs, target):
        if not self.tuned:
            raise BackendError("not like this")
        return super().lower(program, inputs, target)


@pytest.fixture
def large():
    """An input that takes the model far longer than what a busy machine adds to a tuned backend."""
    return torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Hasty(Coarse):
    """Computes nothing; it is far faster where it is less precise."""

    info = BackendInfo("hasty", ("cpu",))
    seconds: float = 2e-4

    def variants(self, program, target, exact):
        return [self] if exact else [self, Hasty(error=0.01, seconds=0)]

    def lower(self, program, inputs, target):
        expected = {}

        def call(*given):
            if len(given[0]) not in expected:
                expected[len(given[0])] = program.module(*given)
            time.sleep(self.seconds)
            return tuple(t * (1 + self.error) for t in expected[len(given[0])])

        return Compile(call)


@dataclass(frozen=True)
class Slower(Hasty):
    info = BackendInfo("slower", ("cpu",))
    seconds: float = 5e-4

    @property
    def label(self):
        return "slower"

    def variants(self, program, target, exact):
        return [self]


def refusing_coarse(model, x):
    """Accepts what is exact alone."""

    def score(module):
        with torch.no_grad():
            return 1 - 10 * float((module(x) - model(x)).norm() / model(x).norm())

    return {"evaluate": score, "max_drop": 0.02}


def test_what_was_slower_than_one_that_the_score_refuses_is_not_lost(model, large, plugins):
    plugins(backends=[Hasty])
    limits = refusing_coarse(model, large)
    for known in (False, True):  # the second time, timings of the first take it out at once
        fast = fxopt.optimize(model, (large,), backends=["hasty"], **limits)
        region = fast.report.regions[0]
        tried = {candidate.backend: candidate.reason for candidate in region.candidates}
        assert "the score drops" in tried["coarse"], known
        assert region.chosen.backend == "fine", known


def test_what_was_faster_than_the_winner_comes_back_too(model, large, plugins, monkeypatch):
    """Where something wins that is not plain torch, but was not timed before."""
    plugins(backends=[Hasty, Slower])
    arguments = {"backends": ["hasty", "slower"], **refusing_coarse(model, large)}
    fxopt.optimize(model, (large,), **arguments)
    read = TuningFile.read

    def without_slower(file):
        known = read(file)
        assert {name.partition("/")[0] for name in known} >= {"fine", "slower"}
        coarse = {"coarse/reduced": Timing(1e-3, True)}
        return coarse | {name: took for name, took in known.items() if "slower" not in name}

    monkeypatch.setattr(TuningFile, "read", without_slower)
    lines = []
    fast = fxopt.optimize(model, (large,), progress=lines.append, **arguments)
    region = fast.report.regions[0]
    assert region.chosen.backend == "fine"
    lowered = [line.split()[-1] for line in lines if line.startswith("lowering")]
    assert lowered.index("slower") < lowered.index("fine")  # it was out at first


def test_a_winner_is_tuned(model, large, plugins):
    plugins(backends=[Tunable])
    fast = fxopt.optimize(model, (large,), backends=["tunable"])
    region = fast.report.regions[0]
    tried = {c.backend: c for c in region.candidates}
    assert region.chosen.backend == "tunable tuned"
    assert tried["tunable"].milliseconds > region.chosen.milliseconds
    assert "output error" in tried["tunable tuned wrong"].reason


@pytest.mark.parametrize("on_offer", [True, False])
def test_what_a_winner_names_of_another_backend_is_tried_where_that_is_on_offer(
    model, large, plugins, on_offer
):
    @dataclass(frozen=True)
    class Preview(Tunable):
        info = BackendInfo("preview", ("cpu",))
        label = "preview"

        def tunings(self, program, inputs, target, milliseconds):
            return [Slow(tuned=True)]

    plugins(backends=[Preview, Slow])
    names = ["preview", "tunable"] if on_offer else ["preview"]
    region = fxopt.optimize(model, (large,), backends=names).report.regions[0]
    tried = {candidate.backend for candidate in region.candidates}
    assert region.chosen.backend == ("tunable tuned" if on_offer else "preview")
    assert ("tunable tuned" in tried) == on_offer


def test_a_backend_that_fails_to_say_what_else_to_try_may_still_win(model, large, plugins):
    @dataclass(frozen=True)
    class Speechless(Tunable):
        info = BackendInfo("speechless", ("cpu",))

        def tunings(self, program, inputs, target, milliseconds):
            raise RuntimeError("no idea")

    plugins(backends=[Speechless])
    lines = []
    fast = fxopt.optimize(model, (large,), backends=["speechless"], progress=lines.append)
    assert fast.report.regions[0].chosen.backend == "tunable"  # its label
    assert [line for line in lines if "cannot say what else to try: RuntimeError: no idea" in line]


SHRUNK, ROUNDED = 1 / 64, 1 / 16


def on_grid(program, step):
    """Whether the weights of the head are multiples of a step."""
    (head,) = program.find(nn.Linear)
    weight = program.leaf(head).weight
    return torch.equal(weight, (weight / step).round() * step)


def coarser(program, step):
    with program.edit() as edit:
        for node in program.find(nn.Linear):
            old = program.leaf(node)
            new = nn.Linear(old.in_features, old.out_features)
            new.weight.data = (old.weight.data / step).round() * step
            new.bias.data = old.bias.data
            edit.replace(node, new, *node.args)
    return edit.result()


@dataclass(frozen=True)
class Shrink(Pass):
    info = PassInfo("shrink", "structure", Lossy())

    def run(self, program, context):
        return coarser(program, SHRUNK)


@dataclass(frozen=True)
class Round(Pass):
    info = PassInfo("round", "numeric", Lossy())

    def run(self, program, context):
        return coarser(program, ROUNDED)


@dataclass(frozen=True)
class FastOnShrunk(Backend):
    """Faster than anything that computes where weights are shrunk and not rounded, else slow."""

    info = BackendInfo("fast_on", ("cpu",))

    def is_fast(self, program):
        return on_grid(program, SHRUNK) and not on_grid(program, ROUNDED)

    def lower(self, program, inputs, target):
        known = {len(inputs[0]): program.module(*inputs)}
        fast = self.is_fast(program)

        def call(*given):
            time.sleep(0 if fast else 0.02)
            return known.get(len(given[0])) or program.module(*given)

        return Compile(call)


@dataclass(frozen=True)
class FastOnRounded(FastOnShrunk):
    def is_fast(self, program):
        return on_grid(program, ROUNDED)


@pytest.mark.parametrize(
    ("backend", "version", "recipe"),
    [(FastOnShrunk, "unrounded", "shrink"), (FastOnRounded, "lossy", "shrink,round")],
)
def test_rounding_that_does_not_pay_is_left_out_alone(model, x, plugins, backend, version, recipe):
    plugins(passes=[Shrink, Round], backends=[backend])
    fast = fxopt.optimize(model, (x,), passes="shrink,round", backends=["fast_on"])
    report = fast.report
    assert report.regions[0].chosen.version == version
    assert report.recipe == recipe
    tried = {c.version for c in report.regions[0].candidates}
    assert {"exact", "unrounded", "lossy"} <= tried
    if version == "unrounded":
        (rounding,) = (record for record in report.passes if record.name == "round")
        assert rounding.status == "rolled back"
        assert "not faster" in rounding.reason


@dataclass(frozen=True)
class Coarsen(Pass):
    info = PassInfo("coarsen", "structure", Lossy())

    def run(self, program, context):
        return coarser(program, 1.0)


@dataclass(frozen=True)
class Mend(Pass):
    """Rounds what the weights were before: as training with rounding might."""

    info = PassInfo("mend", "numeric", Lossy())

    def run(self, program, context):
        (head,), (before,) = program.find(nn.Linear), context.original.find(nn.Linear)
        program.leaf(head).weight.data = context.original.leaf(before).weight.data.clone()
        return coarser(program, ROUNDED)


@dataclass(frozen=True)
class FastOnCoarse(FastOnShrunk):
    def is_fast(self, program):
        return on_grid(program, 1.0)


def test_what_drifts_less_for_being_rounded_may_be_left_unrounded(model, x, plugins):
    plugins(passes=[Coarsen, Mend], backends=[FastOnCoarse])
    fast = fxopt.optimize(model, (x,), passes="coarsen,mend", backends=["fast_on"])
    drifts = {record.name: record.drift for record in fast.report.passes}
    assert drifts["coarsen"] > 2 * drifts["mend"]
    assert fast.report.regions[0].chosen.version == "unrounded"


def test_rounding_alone_races_with_the_exact_program_only(model, x, plugins):
    plugins(passes=[Round], backends=[FastOnRounded])
    fast = fxopt.optimize(model, (x,), passes="cleanup,round,fold_bn", backends=["fast_on"])
    assert "unrounded" not in {c.version for c in fast.report.regions[0].candidates}
