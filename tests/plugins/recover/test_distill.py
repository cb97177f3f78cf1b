"""What distill trains towards, what it keeps, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fxopt
from fxopt.errors import PassError
from fxopt.training import Trainer, Training
from fxopt_recover import Distill
from fxopt_recover.distances import relative_square
from tests.plugins.recover.support import (
    LABELS,
    X,
    batches,
    context,
    halved,
    net,
    objective,
    outputs,
    program_of,
)


@pytest.mark.parametrize(
    ("hints", "labelled"), [("off", False), ("attention", True), ("features", False)]
)
def test_a_pruned_student_comes_nearer_to_its_teacher(hints, labelled):
    teacher = program_of(net())
    before, wanted = teacher.fingerprint(), outputs(teacher)
    student = halved(teacher)
    start = float(relative_square(outputs(student), wanted))
    item = Distill(hints=hints, match="outputs", weight=0.99)
    result = item.run(student, context(teacher, labelled))
    assert float(relative_square(outputs(student), wanted)) < 0.5 * start
    assert teacher.fingerprint() == before
    assert ("hints" in result.summary) == (hints != "off")
    leaves = [student.leaf(node) for node in student.nodes if node.op == "call_module"]
    assert not any(leaf._forward_hooks for leaf in leaves)


def test_frozen_parameters_stay_as_the_student_learns():
    model = net()
    model[0].requires_grad_(False)
    teacher = program_of(model)
    student = teacher.clone()
    with torch.no_grad():
        student.module.get_parameter("8.weight").mul_(0.5)
    before = {name: weight.clone() for name, weight in student.module.named_parameters()}
    Distill(hints="attention").run(student, context(teacher))
    after = dict(student.module.named_parameters())
    kept = {name for name, weight in after.items() if torch.equal(weight, before[name])}
    assert kept == {"0.weight", "0.bias"}


@pytest.mark.parametrize("other", ["temperature", "teacher"])
def test_a_checkpoint_of_another_distillation_is_left_alone(other, tmp_path):
    first, second = program_of(net()), program_of(net())
    torch.nn.init.ones_(second.module.get_parameter("8.weight"))
    again = {"temperature": Distill(temperature=1.0), "teacher": Distill()}[other]
    teacher = second if other == "teacher" else first

    def distilled(item, teacher, folder):
        student = halved(first)
        trainer = Trainer(Training([X[:32]], loss=None, epochs=2), folder=folder)
        item.run(student, replace(context(teacher, False), training=trainer))
        return student.fingerprint()

    kept = distilled(Distill(), first, tmp_path)
    assert distilled(Distill(), first, tmp_path) == kept
    assert distilled(again, teacher, tmp_path) == distilled(again, teacher, None) != kept


def test_labels_count_for_the_rest():
    teacher, student = program_of(net()), program_of(net(8))
    y = student(X)

    def criterion(flat, target):
        return nn.functional.cross_entropy(flat[0], target)

    alone = float(objective(teacher)(y, [X], None))
    labels = float(criterion(y, LABELS))
    found = float(objective(teacher, criterion, weight=0.3)(y, [X], LABELS))
    assert found == pytest.approx(0.3 * alone + 0.7 * labels, rel=1e-5)


def test_an_original_is_needed():
    program = program_of(net())
    with pytest.raises(PassError, match="needs the original"):
        Distill().run(program, replace(context(program), original=None))


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"weight": 1.5}, {"weight": -0.1}, {"hint_weight": -1.0}]
)
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="must"):
        Distill(**settings)


def test_the_whole_pipeline_learns_from_the_original():
    model = net()
    passes = "prune{ratio=0.5,round_to=1,reconstruct=false},distill{match=outputs},fold_bn"
    training = Training(batches(labelled=False), loss=None, epochs=8, learning_rate=3e-2)
    fast = fxopt.optimize(
        model, (X[:8],), passes=passes, backends=["eager"], calibration=[X], training=training
    )
    names = {record.name: record for record in fast.report.passes}
    assert list(names) == ["prune", "distill", "fold_bn"]
    distilled = names["distill"]
    assert distilled.status == "applied" or "not faster" in distilled.reason  # it is tiny
    assert names["distill"].drift < names["prune"].drift
    assert model[0].weight.shape[0] == 16
