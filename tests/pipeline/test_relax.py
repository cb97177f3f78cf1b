"""Milder settings of a pass that costs too much quality."""

from dataclasses import dataclass

import pytest
import torch

from fxopt.passes import Lossy, Milder, PassInfo
from fxopt.pipeline import compare
from fxopt.pipeline.lowering.version import LOSSY_SLACK
from fxopt.report.format import costs, outcome
from tests.building import image, small_cnn
from tests.pipeline.support import Coarsen, ReluModules, outputs, run, same_weights, weights

STEPS = [0.4, 0.3, 0.2, 0.15, 0.1, 0.05, 0.02]


@dataclass(frozen=True)
class Adjustable(Coarsen):
    """Rounds the weights of the head, more finely if need be."""

    step: float = 0.5
    info = PassInfo("adjustable", "numeric", Lossy())
    runs = []

    def run(self, program, context):
        self.runs.append(self.step)
        return super().run(program, context)

    def milder(self, program, context):
        steps = [step for step in STEPS if step < self.step]
        return Milder([type(self)(step) for step in steps], {"head": (1.0, 0.5)})


@pytest.fixture(autouse=True)
def runs():
    Adjustable.runs.clear()
    return Adjustable.runs


def drift_of(step, program):
    return run([Coarsen(step)], program).records[0].drift


def test_the_strongest_setting_that_keeps_the_limit_is_found(runs):
    program = small_cnn()
    limit = drift_of(0.15, program) * 1.001 * LOSSY_SLACK  # lowering may need the rest
    assert drift_of(0.2, program) * LOSSY_SLACK > limit
    found = run([Adjustable(), ReluModules()], program, max_drift=limit)
    record = found.records[1]
    assert (record.status, record.text) == ("applied", "adjustable{step=0.15}")
    assert record.drift <= limit
    assert "max_drift" in record.details["milder"]
    assert "milder settings, since otherwise adjustable takes" in outcome(record)
    assert costs(record) == ("head: 100 % of the error, 50 % of the gain",)
    assert runs == [0.5, 0.15, 0.3, 0.2]
    expected = run([Coarsen(0.15)], program).program
    torch.testing.assert_close(outputs(found.program), outputs(expected), rtol=0, atol=0)


@pytest.mark.parametrize("kept", [STEPS[0], STEPS[-1]])
def test_the_ends_are_found_too(kept):
    program = small_cnn()
    limit = drift_of(kept, program) * 1.001 * LOSSY_SLACK
    record = run([Adjustable()], program, max_drift=limit).records[0]
    assert record.text == f"adjustable{{step={kept}}}"


def test_what_keeps_the_limit_barely_is_better_than_nothing():
    program = small_cnn()
    record = run([Adjustable()], program, max_drift=drift_of(STEPS[-1], program) * 1.001).records[0]
    assert (record.status, record.text) == ("applied", f"adjustable{{step={STEPS[-1]}}}")


def test_the_score_is_a_limit_too():
    program = small_cnn()
    reference = outputs(program, 8)

    def agreement(module):
        with torch.no_grad():
            return 1 - compare([module(image(8))], [reference]).error

    wanted = run([Coarsen(0.1)], program, evaluate=agreement).records[0].score
    allowed = (1 - wanted) * 1.001
    record = run([Adjustable()], program, evaluate=agreement, max_drop=allowed).records[0]
    assert (record.text, record.score) == ("adjustable{step=0.1}", wanted)


def test_where_none_keeps_the_limit_the_pass_is_rolled_back():
    program = small_cnn()
    found = run([Adjustable(), ReluModules()], program, max_drift=1e-9)
    relu, record = found.records
    assert (relu.status, record.status, record.text) == ("applied", "rolled back", "adjustable")
    assert "max_drift=1e-09 is allowed; of its milder settings, adjustable takes" in record.reason
    torch.testing.assert_close(outputs(found.program), outputs(program))


def test_settings_that_fail_otherwise_end_the_search():
    class Fragile(Adjustable):
        def run(self, program, context):
            if self.step == 0.15:
                raise RuntimeError("no such step")
            return super().run(program, context)

    record = run([Fragile()], max_drift=1e-9).records[0]
    assert record.status == "rolled back"
    assert "of its milder settings, adjustable failed: RuntimeError: no such step" in record.reason


def broken(self, program, context):
    raise RuntimeError("no idea")


def foreign(self, program, context):
    return Milder([ReluModules()])


def bare(self, program, context):
    return [self]


@pytest.mark.parametrize(
    ("milder", "complaint"),
    [(broken, "no idea"), (foreign, "ReluModules"), (bare, "returned a list, not a Milder")],
)
def test_a_broken_milder_is_named_and_the_others_run(milder, complaint):
    bad = type("Bad", (Adjustable,), {"milder": milder})
    program = small_cnn()
    relu, record = run([bad(), ReluModules()], program, max_drift=1e-9).records
    assert (relu.status, record.status) == ("applied", "rolled back")
    assert "adjustable failed to say what its milder settings are" in record.reason
    assert complaint in record.reason


def test_what_milder_does_to_its_program_changes_nothing():
    class Vandal(Adjustable):
        def milder(self, program, context):
            for parameter in program.module.parameters():
                parameter.data.zero_()
            return super().milder(program, context)

    program = small_cnn()
    saved = weights(program)
    limit = drift_of(0.1, program) * 1.001 * LOSSY_SLACK
    record = run([Vandal()], program, max_drift=limit).records[0]
    assert record.text == "adjustable{step=0.1}"
    assert same_weights(program, saved)


def test_without_a_limit_nothing_is_tried(runs):
    assert run([Adjustable()]).records[0].text == "adjustable"
    assert runs == [0.5]
