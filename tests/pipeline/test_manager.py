"""The pass manager: what runs, what is skipped, what is measured, what is kept."""

import importlib

import pytest
import torch
from torch import nn

from fxopt.analysis import Fact
from fxopt.errors import CalibrationError, InputError, ProgramError
from fxopt.ir import PassResult
from fxopt.passes import STAGES, Calibration, Exact, Lossy
from fxopt.pipeline import PassManager, compare, numbers, plan
from fxopt.pipeline.numbers import _MAX_BATCHES, Numbers
from tests.building import aten, image, small_cnn
from tests.pipeline.support import (
    FACTS,
    Coarsen,
    ReluModules,
    SwapAdd,
    context,
    declare,
    outputs,
    run,
)

IDLE = PassResult(changed=False, summary="nothing to do")


def idle(program, _):
    return IDLE


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_records_tell_what_was_done():
    program = small_cnn()
    outcome = run([SwapAdd(), ReluModules(), Coarsen()], program)
    relu, coarsen, swap = outcome.records
    assert (relu.name, coarsen.name, swap.name) == ("relu_modules", "coarsen", "swap_add")
    assert {record.status for record in outcome.records} == {"applied"}
    assert (relu.exact, coarsen.exact) == (True, False)
    assert relu.nodes_before == relu.nodes_after == len(program.nodes)
    assert relu.error == relu.drift == 0
    assert relu.summary == "1 rewrite"
    assert swap.summary == "additions swapped"
    assert swap.error <= 1e-6
    assert all(record.seconds > 0 for record in outcome.records)
    measured = max(relative(outputs(outcome.program, b), outputs(program, b)) for b in (2, 3))
    assert coarsen.drift == pytest.approx(measured, rel=1e-3)
    assert coarsen.error == pytest.approx(coarsen.drift, rel=1e-3)
    assert coarsen.text == "coarsen"
    assert run([Coarsen(step=0.5)]).records[0].text == "coarsen{step=0.5}"


def test_exact_is_what_all_exact_passes_make_also_those_behind_a_lossy_one():
    program = small_cnn()
    outcome = run([SwapAdd(), ReluModules(), Coarsen()], program)
    assert [record.name for record in outcome.records] == ["relu_modules", "coarsen", "swap_add"]
    assert torch.equal(outputs(outcome.exact), outputs(program))
    assert list(outcome.exact.find(nn.ReLU))
    additions = [
        [str(argument) for argument in next(each.find(aten.add.Tensor)).args]
        for each in (program, outcome.exact, outcome.program)
    ]
    assert additions[0] != additions[1] == additions[2]
    exact_only = run([SwapAdd(), ReluModules()], program)
    assert exact_only.exact is exact_only.program


def test_unrounded_is_what_all_passes_make_but_those_that_round():
    program = small_cnn()
    relus = declare(ReluModules().run, "relus", stage="structure", fidelity=Lossy())
    outcome = run([relus, Coarsen(), SwapAdd()], program)
    assert torch.equal(outputs(outcome.unrounded), outputs(program))
    assert not torch.equal(outputs(outcome.program), outputs(program))
    made = (program, outcome.exact, outcome.unrounded, outcome.program)
    assert [len(list(each.find(nn.ReLU))) for each in made] == [0, 0, 1, 1]
    first = [str(next(each.find(aten.add.Tensor)).args[0]) for each in made]
    assert [name == "body_conv" for name in first] == [True, False, False, False]


def test_unrounded_is_another_one_where_nothing_else_loses_or_nothing_rounds():
    rounding = run([ReluModules(), Coarsen(), SwapAdd()])
    assert rounding.unrounded is rounding.exact is not rounding.program
    relus = declare(ReluModules().run, "relus", stage="structure", fidelity=Lossy())
    structural = run([relus, SwapAdd()])
    assert structural.unrounded is structural.program is not structural.exact
    exact = run([ReluModules(), SwapAdd()])
    assert exact.unrounded is exact.exact is exact.program


def test_what_loses_behind_the_numeric_passes_rounds_too():
    assert [declare(idle, stage=stage, fidelity=Lossy()).info.rounds for stage in STAGES] == [
        False, False, False, False, True, True,
    ]  # fmt: skip
    assert not any(declare(idle, stage=stage).info.rounds for stage in STAGES)


def test_exact_leaves_out_what_needs_a_lossy_pass():
    lossy = declare(ReluModules().run, "lossy", fidelity=Lossy(), provides=("relus_are_modules",))
    seen = []

    def after(program, context):
        seen.append(len(list(program.find(nn.ReLU))))
        return SwapAdd().run(program, context)

    item = declare(after, stage="lower", requires=("relus_are_modules",))
    outcome = run([lossy, item])
    assert [record.status for record in outcome.records] == ["applied", "applied"]
    assert seen == [1]
    assert not list(outcome.exact.find(nn.ReLU))


def test_inapplicable_is_skipped_with_its_reason():
    item = declare(idle, inapplicable=lambda program: "no clamp(x, 0, 6)")
    record = run([item]).records[0]
    assert (record.status, record.reason) == ("skipped", "no clamp(x, 0, 6)")


def test_missing_data_is_a_reason_to_skip():
    records = run(
        [declare(idle, "a", needs=("calibration",)), declare(idle, "b", needs=("training",))]
    )
    assert [record.status for record in records.records] == ["skipped", "skipped"]
    assert "calibration=" in records.records[0].reason
    assert "training=" in records.records[1].reason
    batches = Calibration([image(4)], small_cnn().signature)
    item = declare(idle, needs=("calibration",))
    assert run([item], context=context(calibration=batches)).records[0].status == "unchanged"


def test_unchanged_and_said_so():
    program = small_cnn()
    outcome = run([declare(idle)], program)
    assert outcome.records[0].status == "unchanged"
    assert outcome.records[0].summary == "nothing to do"
    assert outcome.program is program


def test_a_change_that_is_none_is_recorded_as_unchanged():
    program = small_cnn()
    outcome = run([declare(lambda p, _: PassResult(changed=True), "boasts")], program)
    assert outcome.records[0].status == "unchanged"
    assert "the same bit for bit" in outcome.records[0].reason
    assert outcome.program is program


def test_what_the_fingerprint_does_not_show_is_a_change_too():
    def momentum(program, _):
        program.module.stem.secret = 3
        return PassResult(changed=True)

    assert run([declare(momentum)]).records[0].status == "applied"


def test_a_fact_that_a_pass_breaks_is_found_before_the_one_that_requires_it():
    def breaks(program, _):
        with program.edit() as edit:
            for node in program.find(nn.ReLU):
                edit.replace(node, aten.relu.default, *node.args)
        return edit.result()

    requirer = declare(idle, "requirer", stage="numeric", requires=("relus_are_modules",))
    records = run([ReluModules(), declare(breaks), requirer]).records
    assert [record.status for record in records] == ["applied", "applied", "skipped"]
    assert records[1].details["broken"] == ["relus_are_modules"]
    assert "does not hold, since breaks has run: %relu" in records[2].reason
    mended = run([ReluModules(), requirer]).records
    assert mended[1].status == "unchanged"


def test_a_fact_whose_check_raises_does_not_hold():
    def broken_check(program):
        raise KeyError("oops")

    facts = {**FACTS, "odd": Fact("odd", "who knows", broken_check)}
    items = [declare(idle, "a", provides=("odd",)), declare(idle, "b", requires=("odd",))]
    manager = PassManager(plan(items, facts, set()), facts, context())
    records = manager.run(small_cnn()).records
    assert [record.status for record in records] == ["rolled back", "skipped"]
    assert all("its check fails with KeyError" in record.reason for record in records)


def test_max_drift_rolls_back():
    program = small_cnn()
    drift = run([Coarsen()], program).records[0].drift
    assert 0 < drift < 1
    kept = run([Coarsen()], program, max_drift=drift * 1.01)
    assert kept.records[0].status == "applied"
    outcome = run([Coarsen(), ReluModules()], program, max_drift=drift * 0.99)
    applied, rolled = outcome.records
    assert applied.status == "applied"
    assert rolled.status == "rolled back"
    assert "coarsen takes output 0 at batch size" in rolled.reason
    assert f"max_drift={drift * 0.99:g}" in rolled.reason
    assert rolled.drift == pytest.approx(drift)
    assert torch.equal(outputs(outcome.program), outputs(program))


@pytest.mark.parametrize("limit", [None, 1e-6])
def test_outputs_are_those_of_what_is_kept(limit):
    program = small_cnn()
    outcome = run([SwapAdd(), Coarsen()], program, max_drift=limit)
    assert [r.status == "applied" for r in outcome.records] == [limit is None, True]
    examples = [example[0] for example in context().examples]
    kept = [[outcome.program(example)[0] for example in examples], outcome.outputs]
    assert len(examples) == 2
    for mine, (told,) in zip(*kept, strict=True):
        assert torch.equal(mine, told)
    assert torch.equal(outcome.reference[0][0], program(examples[0])[0])


@pytest.mark.parametrize("behind", [True, False])
def test_what_nothing_follows_is_not_run_once_more(monkeypatch, behind):
    made = []
    numbers = importlib.import_module("fxopt.pipeline.manager").Numbers
    monkeypatch.setattr(
        "fxopt.pipeline.manager.Numbers", lambda *given: made.append(given) or numbers(*given)
    )
    run([Coarsen(), *([SwapAdd()] if behind else [])])
    assert len(made) == 1 + behind


def test_drift_is_measured_against_the_original():
    records = run([Coarsen(step=0.3), Coarsen(step=0.31)]).records
    assert records[1].drift != records[1].error


def test_drift_counts_on_the_calibration_data_too():
    signature = small_cnn().signature
    harsh = Calibration([image(2), image(6) * 1000], signature)

    def clips(program, _):
        with program.edit() as edit:
            stem = next(iter(program.inputs[0].users))
            clamped = edit.call(aten.clamp.default, stem.args[0], -5, 5, before=stem)
            edit.set_arguments(stem, clamped)
        return edit.result()

    clipping = declare(clips, fidelity=Lossy())
    gentle = run([clipping], max_drift=0.01).records[0]
    assert (gentle.status, gentle.drift) == ("applied", 0)
    record = run([clipping], context=context(calibration=harsh), max_drift=0.01).records[0]
    assert record.status == "rolled back"
    assert "calibration batch 1" in record.reason
    assert record.details["drift_examples"] == 0
    assert record.details["drift_calibration"] == record.drift > 0.5


def test_calibration_is_read_once_and_only_its_beginning(monkeypatch):
    served = []

    def batches():
        for index in range(100):
            served.append(index)
            yield image(2)

    class Once:
        def __iter__(self):
            return batches()

    told = context(calibration=Calibration(Once(), small_cnn().signature))
    run([Coarsen(), Coarsen(step=0.1)], context=told)
    assert len(served) <= _MAX_BATCHES + 1
    served.clear()
    many = context(calibration=Calibration(Once(), small_cnn().signature))
    monkeypatch.setattr("fxopt.pipeline.numbers._MAX_ROWS", 3)
    run([Coarsen()], context=many)
    assert len(served) <= 3  # two batches of two rows
    served.clear()
    run([ReluModules()], context=told)
    assert not served  # exact passes do not need it


def test_calibration_that_the_model_does_not_take():
    wrong = context(calibration=Calibration([torch.zeros(2, 5)], small_cnn().signature))
    with pytest.raises(CalibrationError, match="fails on a calibration batch"):
        run([Coarsen()], context=wrong)


def test_without_examples_lossy_passes_cannot_keep_a_limit():
    record = run([Coarsen()], context=context(examples=[])).records[0]
    assert (record.status, record.drift, record.error) == ("applied", None, None)
    record = run([Coarsen()], context=context(examples=[]), max_drift=0.5).records[0]
    assert record.status == "rolled back"
    assert "without example inputs" in record.reason


def test_evaluate_and_max_drop():
    program = small_cnn()
    reference = outputs(program, 8)

    def agreement(module):
        with torch.no_grad():
            return 1 - compare([module(image(8))], [reference]).error

    fine = run([Coarsen()], program, evaluate=agreement, max_drop=1.0)
    assert fine.records[0].status == "applied"
    assert fine.records[0].score < 1
    assert fine.records[0].details["score_original"] == 1
    limit = (1 - fine.records[0].score) * 0.5
    tight = run([Coarsen(), ReluModules()], program, evaluate=agreement, max_drop=limit)
    assert [record.status for record in tight.records] == ["applied", "rolled back"]
    assert tight.records[0].score is None  # an exact pass is not scored
    assert "evaluate drops from 1 to 0.9" in tight.records[1].reason
    unlimited = run([Coarsen()], program, evaluate=agreement)
    assert unlimited.records[0].score == fine.records[0].score


def test_a_known_score_is_not_computed_again():
    calls = []

    def evaluate(module):
        calls.append(module.training)
        return 0.5

    record = run([Coarsen()], evaluate=evaluate, max_drop=0.1, score=0.7).records[0]
    assert record.status == "rolled back"
    assert "from 0.7 to 0.5" in record.reason
    assert calls == [False]


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        (lambda module: 1 / 0, "evaluate raised ZeroDivisionError"),
        (lambda module: "good", "evaluate returned 'good', which is no number"),
        (lambda module: None, "evaluate returned None"),
        (lambda module: float("nan"), "evaluate returned NaN"),
    ],
)
def test_evaluate_that_fails_is_the_users_error(evaluate, words):
    with pytest.raises(InputError, match=words):
        run([Coarsen()], evaluate=evaluate, max_drop=0.1)


def test_evaluate_that_fails_on_a_result_blames_the_pass():
    def evaluate(module):
        if torch.unique(module.head.weight).numel() < 100:
            raise OverflowError("too coarse")
        return 1.0

    records = run([Coarsen(), SwapAdd()], evaluate=evaluate).records
    assert [record.status for record in records] == ["rolled back", "applied"]
    assert "evaluate raised OverflowError: too coarse" in records[0].reason


def test_a_static_batch_is_compared_at_one_size():
    program = small_cnn()
    program.signature = type(program.signature)(
        program.signature.in_spec, program.signature.out_spec, batch=False
    )

    def fixes(program, _):
        with program.edit() as edit:
            node = next(program.find(aten.mean.dim))
            user = next(iter(node.users))
            edit.redirect(node, edit.call(aten.slice.Tensor, node, 0, 0, 2, before=user))
        return edit.result()

    assert run([declare(fixes)], program).records[0].status == "applied"
    assert run([declare(fixes)], small_cnn()).records[0].status == "rolled back"


def test_the_tolerance_of_a_pass_is_its_own():
    def scales(program, _):
        with program.edit() as edit:
            node = next(program.find(aten.mean.dim))
            user = next(iter(node.users))
            edit.redirect(node, edit.call(aten.mul.Tensor, node, 1.001, before=user))
        return edit.result()

    assert run([declare(scales, fidelity=Exact(1e-2))]).records[0].status == "applied"
    assert run([declare(scales, fidelity=Exact(1e-6))]).records[0].status == "rolled back"


def test_runs_are_reproducible():
    def shakes(program, _):
        with torch.no_grad():
            program.module.head.weight.add_(torch.randn_like(program.module.head.weight) * 0.01)
        return PassResult(changed=True)

    item = declare(shakes, fidelity=Lossy())
    first, again = (run([item], context=context(seed=3)).program.fingerprint() for _ in "ab")
    other = run([item], context=context(seed=4)).program.fingerprint()
    assert first == again != other


def test_a_broken_program_or_example_is_an_error_at_once():
    program = small_cnn()
    with pytest.raises(InputError, match="fails on the example inputs"):
        run([ReluModules()], program, context=context(examples=[[torch.zeros(2, 5)]]))
    del program.module.head
    with pytest.raises(ProgramError, match="head"):
        PassManager(plan([], {}, ()), {}, context()).run(program)


def test_training_mode_is_left_as_it_was():
    program = small_cnn()
    program.module.train()
    outcome = run([ReluModules(), Coarsen()], program)
    assert [record.status for record in outcome.records] == ["applied", "applied"]
    assert all(module.training for module in outcome.program.module.modules())
    assert program.module.stem.training


def test_checking_mode_accepts_honest_passes():
    records = run([ReluModules(), Coarsen(), SwapAdd()], checking=True).records
    assert {record.status for record in records} == {"applied"}


def test_outputs_that_are_known_are_not_computed_again(monkeypatch):
    program = small_cnn()
    with torch.no_grad():
        known = program(image(2))
    ran = []
    run_program = numbers.run_program

    def watched(what, flat, seed):
        ran.append((what is program, len(flat[0])))
        return run_program(what, flat, seed)

    monkeypatch.setattr(numbers, "run_program", watched)
    several = Numbers(program, context(), known)
    assert ran == [(True, 3)]
    assert several.reference[0] is known
    ran.clear()
    Numbers(program, context(examples=[[image(2)]]), known)
    assert ran == [(True, 2)]  # at least one run says whether it writes to its inputs
