"""Scores of classes are compared as Hinton et al. do, other numbers are not."""

import numpy as np
import pytest
import torch
from torch import nn

from fxopt.errors import PassError
from fxopt_recover import Distill
from fxopt_recover.distances import relative_square
from fxopt_recover.scores import choose
from tests.plugins.recover.support import (
    X,
    context,
    images,
    net,
    numbers,
    objective,
    outputs,
    program_of,
)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_scores_are_compared_as_hinton_does(temperature):
    teacher, student = program_of(net()), program_of(net(8))
    y = student(X)
    found = objective(teacher, temperature=temperature)(y, [X], None)
    p, q = (softmax(z.detach().numpy() / temperature) for z in (outputs(teacher), y[0]))
    wanted = temperature**2 * (p * (np.log(p) - np.log(q))).sum(-1).mean()
    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-4)


def test_classes_of_images_are_behind_the_batch():
    teacher = program_of(images())
    y = torch.randn(64, 5, 4, 8, generator=torch.Generator().manual_seed(2))
    found = objective(teacher, temperature=1.0)([y], [X], None)
    p, q = (softmax(np.moveaxis(z.numpy(), 1, -1)) for z in (outputs(teacher), y))
    wanted = (p * (np.log(p) - np.log(q))).sum(-1).mean()
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "loss", "match"),
    [
        (net, None, "logits"),
        (net, nn.functional.cross_entropy, "logits"),
        (net, nn.CrossEntropyLoss(label_smoothing=0.1), "logits"),
        (lambda: numbers(1), None, "outputs"),
        (lambda: numbers(4), nn.functional.mse_loss, "outputs"),
        (lambda: numbers(4), nn.HuberLoss(), "outputs"),
        (lambda: numbers(4), nn.BCEWithLogitsLoss(), "outputs"),
        (images, None, "outputs"),
    ],
)
def test_scores_are_told_from_numbers(model, loss, match):
    assert choose("auto", program_of(model()), loss) == match


def test_a_student_of_one_number_learns():
    teacher = program_of(numbers(1))
    student = teacher.clone()
    with torch.no_grad():
        student.module.get_parameter("1.weight").mul_(0.5)
    start = float(relative_square(outputs(student), outputs(teacher)))
    Distill().run(student, context(teacher))
    assert float(relative_square(outputs(student), outputs(teacher))) < 0.5 * start


def test_one_number_is_no_scores():
    program = program_of(numbers(1))
    with pytest.raises(PassError, match=r"two classes.*shape \(.*, 1\)"):
        Distill(match="logits").run(program, context(program))
