"""Nets, what they are trained on, and how far outputs are."""

import torch
from torch import nn

from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt.passes import Context
from fxopt.training import Trainer, Training
from fxopt_prune import Prune
from fxopt_recover.hints import Hints
from fxopt_recover.objective import Imitation

CPU = find_target("cpu")
X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(64) % 4


def net(width=16):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4),
    )  # fmt: skip
    with torch.no_grad():
        model[-1].weight.mul_(20)  # as sure of its answers as a trained one
        for _ in range(30):
            model(X)  # batch norms find their statistics
    return model.eval()


def program_of(model):
    return capture_program(model, (X[:4],), {}).clone()


def batches(labelled):
    pairs = list(zip(X.split(16), LABELS.split(16), strict=True))
    return pairs if labelled else [x for x, _ in pairs]


def context(program, labelled=False, **settings):
    given = {"learning_rate": 3e-2, "epochs": 8, **settings}
    training = Training(batches(labelled), loss="cross_entropy" if labelled else None, **given)
    return Context(CPU, training=Trainer(training), original=program)


def outputs(program):
    with torch.no_grad():
        return program(X)[0]


def halved(program):
    student = program.clone()
    Prune(ratio=0.5, round_to=1, reconstruct=False).run(student, Context(CPU))
    return student


def images():
    """Scores of 5 classes for each pixel: (n, 5, 4, 8)."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 5, 3, stride=(2, 1), padding=1).eval()


def numbers(count):
    """A regression of some numbers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, count)).eval()


def perceptron(width=24):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, 4)
    ).eval()  # fmt: skip


def objective(teacher, criterion=None, **settings):
    given = {"match": "logits", "temperature": 2.0, "weight": 1.0, "hint_weight": 1.0, **settings}
    hints = given.pop("hints", None) or Hints(teacher, teacher, [], "off")
    return Imitation(teacher, criterion, hints=hints, **given)
