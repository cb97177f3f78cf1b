"""Teachers of the user's: who learns from them, and which are refused."""

import pytest
import torch
from torch import nn

import fxopt
from fxopt.errors import InputError
from fxopt.training import Training
from fxopt_recover.distances import relative_square
from tests.plugins.recover.support import X, batches, net


def test_a_smaller_network_learns_from_a_teacher_of_the_users():
    teacher, student = net(24), net(8)
    with torch.no_grad():
        wanted = teacher(X)

    def away(module):
        with torch.no_grad():
            return float(relative_square(module(X), wanted))

    training = Training(
        [X.split(16)[i] for i in range(4)],
        loss=None,
        epochs=20,
        learning_rate=0.01,
        teacher=teacher,
    )
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    fast = fxopt.optimize(
        student, (X[:2],), passes="distill{match=outputs}", training=training, backends=["eager"]
    )
    assert away(fast) < 0.5 * away(student)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_a_teacher_that_nobody_learns_from_is_refused():
    training = Training(batches(True), teacher=net())
    with pytest.raises(InputError, match="no pass learns from the teacher"):
        fxopt.optimize(net(), (X[:2],), passes="finetune", training=training)


def test_the_original_races_unless_distill_was_applied():
    """Here it is refused, so that nobody has learned from the teacher."""
    training = Training(batches(True), epochs=1, teacher=net())
    passes = "finetune,distill{layers=[typo],hints=features}"
    fast = fxopt.optimize(net(), (X[:2],), passes=passes, training=training, backends=["eager"])
    names = {record.name: record for record in fast.report.passes}
    assert names["distill"].status == "rolled back"
    (region,) = fast.report.regions
    assert {candidate.version for candidate in region.candidates} == {"exact", "lossy"}


def test_a_teacher_has_to_fit():
    student = net()
    other = nn.Sequential(*list(student)[:-1], nn.Linear(16, 7)).eval()
    for teacher, message in (
        (other, "the teacher yields"),
        (nn.Flatten(5), "cannot be captured"),
    ):
        training = Training([X], loss=None, teacher=teacher)
        with pytest.raises(InputError, match=message):
            fxopt.optimize(student, (X[:2],), passes="distill", training=training)
    with pytest.raises(InputError, match="not an nn"):
        Training([X], loss=None, teacher=len)
