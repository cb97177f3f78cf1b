"""Which trainings are told apart, so that none goes on from the checkpoint of another."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fxopt.frontend import capture_program
from fxopt.training import Trainer, Training
from fxopt.training.identity import describe

SGD = torch.optim.SGD
RATE = 0.1


def closure(value):
    def optimizer(groups):
        return SGD(groups, lr=value)

    return optimizer


class Weighted:
    def __init__(self, weight):
        self.weight = weight

    def __call__(self, outputs, target):
        return self.weight * nn.functional.cross_entropy(outputs, target)


DIFFERENT = {
    "arguments": (partial(SGD, lr=0.1), partial(SGD, lr=0.01)),
    "lambdas": (lambda groups: SGD(groups, lr=0.1), lambda groups: SGD(groups, lr=0.01)),
    "names": (lambda x, y: x.square().sum(), lambda x, y: x.abs().sum()),
    "closures": (closure(0.1), closure(0.01)),
    "defaults": (lambda groups, lr=0.1: SGD(groups, lr=lr), lambda g, lr=0.01: SGD(g, lr=lr)),
    "nested": (lambda x: [a * 2 for a in x], lambda x: [a * 3 for a in x]),
    "smoothing": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
    "weights": (nn.CrossEntropyLoss(torch.ones(3)), nn.CrossEntropyLoss(torch.zeros(3))),
    "attributes": (Weighted(1.0), Weighted(2.0)),
    "methods": (Weighted(1.0).__call__, Weighted(2.0).__call__),
    "classes": (torch.optim.RAdam, torch.optim.NAdam),
    "types": (1, 1.0),
    "text": ("a, b", ("a", "b")),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT)
def test_different_values_are_told_apart(pair):
    one, other = map(describe, pair)
    assert one != other
    assert [one, other] == [describe(value) for value in pair]


def test_a_constant_of_the_module_counts(monkeypatch):
    rate = lambda groups: SGD(groups, lr=RATE)  # noqa: E731
    before = describe(rate)
    monkeypatch.setattr(sys.modules[__name__], "RATE", 0.01)
    assert describe(rate) != before


def test_a_log_does_not_count():
    log = []

    def loss(outputs, target):
        log.append(outputs)
        return outputs.sum()

    before = describe(loss)
    loss(torch.ones(1), None)
    assert describe(loss) == before


def test_what_holds_itself_ends():
    loss = Weighted(1.0)
    loss.weight = [loss]
    assert "itself" in describe(loss)


ELSEWHERE = """
from functools import partial
import torch
from fxopt.training import Training
def closure(factor, names=frozenset("abcdef")):
    return lambda y, t: factor * (y - 1).sum() if t in {"u", "v"} else names
optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
print(Training([], closure(torch.ones(2)), optimizer=optimizer).described())
"""


def test_descriptions_are_the_same_in_every_process():
    found = {
        subprocess.run(
            [sys.executable, "-c", ELSEWHERE],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert "0x" not in found.pop()


def examples(first=0.0):
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    x[0] += first
    return TensorDataset(x, torch.arange(24) % 3)


def program_of():
    torch.manual_seed(0)
    return capture_program(nn.Linear(6, 3).eval(), (torch.randn(4, 6),), {}).clone()


def trained(folder, data=None, lines=None, **settings):
    program, show = program_of(), (lambda line: None) if lines is None else lines.append
    data = DataLoader(examples(), batch_size=6, shuffle=True) if data is None else data
    training = Training(data, epochs=2, **settings)
    Trainer(training, folder=folder, progress=show).train(program, name="distill")
    return program.fingerprint()


OTHERS = {
    "optimizer": {"optimizer": partial(SGD, lr=0.01)},
    "corrected": {"data": DataLoader(examples(1.0), batch_size=24)},
    "more": {"data": DataLoader(examples(), batch_size=12)},
    "judged": {"validation": [(torch.ones(4, 6), torch.zeros(4).long())]},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_each_training_ends_with_its_own_weights(other, tmp_path):
    first = {"optimizer": partial(SGD, lr=0.1), "data": DataLoader(examples(), batch_size=24)}
    wanted = [trained(None, **first), trained(None, **first | other)]
    assert [trained(tmp_path, **first), trained(tmp_path, **first | other)] == wanted
    assert len(list(tmp_path.iterdir())) == 2
    lines = []  # and the first is not lost for the second
    assert trained(tmp_path, lines=lines, **first) == wanted[0]
    assert any("goes on after 2 epochs" in line for line in lines)


def test_those_of_a_name_that_were_used_last_are_kept(tmp_path):
    rates = [0.1 * i for i in range(1, 9)]
    for rate in (*rates, rates[0], 1.0, 2.0):
        trained(tmp_path, optimizer=partial(SGD, lr=rate))
    assert len(list(tmp_path.iterdir())) == 8
    for rate, is_there in ((rates[0], True), (2.0, True), (rates[1], False)):
        lines = []
        trained(tmp_path, lines=lines, optimizer=partial(SGD, lr=rate))
        assert bool(lines) == is_there


class Noisy:
    """Batches with noise of a generator that nobody seeds."""

    def __init__(self):
        self.generator_of_its_own = torch.Generator().manual_seed(3)

    def __len__(self):
        return 4

    def __iter__(self):
        for x, y in DataLoader(examples(), batch_size=6):
            yield x + torch.randn(x.shape, generator=self.generator_of_its_own), y


def test_data_that_differ_each_time_are_gone_on_with(tmp_path):
    first = trained(tmp_path, Noisy())
    lines = []
    assert trained(tmp_path, Noisy(), lines) == first
    assert any("goes on after 2 epochs" in line for line in lines)


def test_what_a_function_closes_over_may_not_be_there_yet():
    def outer(known):
        def inner():
            return late

        text = describe(inner)
        late = known
        return text, describe(inner)

    early, known = outer(1)
    assert early != known
