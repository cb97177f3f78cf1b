"""Hints: between which layers they are, what they cost, and their regressors."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fxopt.errors import PassError
from fxopt.training import Trainer, Training
from fxopt_recover import Distill
from fxopt_recover.hints import Hints
from fxopt_recover.layers import choose_layers
from tests.plugins.recover.support import (
    X,
    context,
    halved,
    net,
    numbers,
    objective,
    perceptron,
    program_of,
)


@pytest.mark.parametrize("kind", ["attention", "features"])
def test_hints_of_equals_are_zero_and_of_others_are_not(kind):
    teacher = program_of(net())
    for student, least, most in ((teacher.clone(), 0.0, 1e-9), (halved(teacher), 1e-4, 2.0)):
        hints = Hints.between(student, teacher, kind, ())
        with hints:
            student(X), teacher(X)
            assert least <= float(hints.distance()) <= most
        assert len(hints) == 2  # the last layers of images of 8 x 8 and of 4 x 4


def test_vectors_within_are_imitated():
    teacher = program_of(perceptron())
    student = program_of(perceptron(8))
    result = Distill(hints="features").run(student, context(teacher))
    assert "1 hints" in result.summary
    names = [name for name, _ in student.module.named_parameters()]
    assert names == ["1.weight", "1.bias", "3.weight", "3.bias"]


def test_fewer_samples_than_channels_do_not_satisfy_a_hint():
    teacher, student = program_of(perceptron()), program_of(perceptron(8))
    hints = Hints.between(student, teacher, "features", (), [[X[:4]]])
    distances = []
    with hints:
        for x in (X[:4], X[4:8]):
            student(x), teacher(x)
            distances.append(float(hints.distance().detach()))
    assert distances[0] < 0.3  # it begins with what fits the examples
    assert distances[1] > 0.3


def test_regressors_learn_with_the_student():
    teacher = program_of(perceptron())
    student = program_of(perceptron(8).requires_grad_(False))  # frozen, so all is trained
    before = student.module.get_parameter("1.weight").clone()
    hints = Hints.between(student, teacher, "features", (), [[X[:4]]])
    start = {name: weight.clone() for name, weight in hints._regressors.named_parameters()}
    with hints:
        student(X), teacher(X)
        away = float(hints.distance().detach())
        context(teacher).training.train(student, objective=objective(teacher, hints=hints))
        student(X), teacher(X)
        assert float(hints.distance()) < 0.75 * away
    learned = dict(hints._regressors.named_parameters())
    assert start.keys() == {"0.weight", "0.bias"}
    assert not any(torch.equal(weight, start[name]) for name, weight in learned.items())
    assert not torch.equal(student.module.get_parameter("1.weight"), before)


class Cut:
    """Batches whose third walk is cut short, after two that look at the first one."""

    def __init__(self):
        self.walks = 0

    def __len__(self):
        return 4

    def __iter__(self):
        self.walks += 1
        yield from X.split(16)[:2]
        if self.walks == 3:
            raise KeyboardInterrupt
        yield from X.split(16)[2:]


def test_regressors_go_on_from_a_checkpoint(tmp_path):
    teacher = program_of(perceptron())

    def distilled(data, folder):
        student = program_of(perceptron(8))
        training = Training(data, loss=None, epochs=2, checkpoint_seconds=0)
        given = replace(
            context(teacher), examples=[[X[:4]]], training=Trainer(training, folder=folder)
        )
        Distill(hints="features").run(student, given)
        return student.fingerprint()

    with pytest.raises(KeyboardInterrupt):
        distilled(Cut(), tmp_path)
    assert distilled(list(X.split(16)), tmp_path) == distilled(list(X.split(16)), None)


def strided(stride):
    model = net()
    model[3].stride = (stride, stride)
    return model


def test_layers_of_other_sizes_are_no_hints():
    student, teacher = program_of(strided(4)), program_of(net())
    assert [layer.name for layer in choose_layers(student, teacher, (), maps=True)] == ["1"]
    message = r"layer '3', which yields \(16, 2, 2\) .* student and \(16, 4, 4\) in the teacher"
    with pytest.raises(PassError, match=message):
        Hints.between(student, teacher, "attention", ("1", "3"))


class Sequences(nn.Module):
    """Channels are along dimension 1 of what Conv1d yields, along the last one of tokens."""

    def __init__(self, width):
        super().__init__()
        self.first, self.tokens = nn.Conv1d(3, width, 1), nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.tokens(self.first(x.flatten(2)).transpose(1, 2)).mean(1))


def test_channels_of_sequences_are_known():
    student, teacher = (program_of(Sequences(width).eval()) for width in (6, 12))
    shared = choose_layers(student, teacher, ("first", "tokens"), maps=False)
    assert [(layer.name, layer.channel) for layer in shared] == [("first", 1), ("tokens", -1)]
    assert all(layer.positions == ("64",) and layer.fits for layer in shared)


@pytest.mark.parametrize(
    ("model", "kind"), [(perceptron, "attention"), (lambda: numbers(4), "features")]
)
def test_hints_that_do_nothing_are_refused(model, kind):
    program = program_of(model())
    with pytest.raises(PassError, match="finds no layers for hints"):
        Distill(hints=kind).run(program, context(program))


def test_layers_of_hints_are_named():
    teacher = program_of(net())
    assert len(Hints.between(teacher.clone(), teacher, "attention", ("3", "1"))) == 2
    with pytest.raises(PassError, match=r"both networks need.* names 'typo'"):
        Hints.between(teacher.clone(), teacher, "attention", ("typo",))
