"""Which units matter more than others."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fxopt.errors import CalibrationError
from fxopt.training import Trainer, Training
from fxopt_prune import Prune
from fxopt_prune.channels import find_groups
from fxopt_prune.importance import scores_of
from tests.plugins.prune.support import case_of, conv, image_case, pruned, random


def influence(case, group):
    """How much outputs change when single units are zero, by definition."""
    with torch.no_grad():
        (before,) = case.program(*case.inputs[0])
        found = []
        for unit in range(len(group)):
            twin = case.program.clone()
            for side in group.sides:
                own = dict(twin.module.named_parameters())
                if side.name in own:
                    own[side.name].index_fill_(side.dim, torch.tensor(side.positions[unit]), 0)
            found.append(float((twin(*case.inputs[0])[0] - before).norm()))
    return torch.tensor(found)


@pytest.mark.parametrize(
    ("importance", "least"), [("magnitude", 0.4), ("activation", 0.9), ("taylor", 0.6)]
)
def test_what_matters_more_has_a_larger_score(importance, least):
    case = image_case(24)
    structure = find_groups(case.program)
    (group,) = structure.groups
    strength = torch.logspace(-2, 1, 24, dtype=torch.float64)[torch.randperm(24)]
    (norm,) = case.program.find(nn.BatchNorm2d)
    with torch.no_grad():
        case.program.leaf(norm).weight.mul_(strength)
        case.program.leaf(norm).bias.mul_(strength)
    (scores,) = scores_of(case.program, structure, case.context(), importance)
    both = torch.stack([torch.tensor(scores), influence(case, group)])
    ranks = both.argsort(1).argsort(1).double()
    assert torch.corrcoef(ranks)[0, 1] > least
    assert (torch.tensor(scores) >= 0).all()


def test_by_itself_it_uses_data_where_there_are_some():
    case = image_case(6, 8)
    structure = find_groups(case.program)

    def scores(importance, context):
        found = scores_of(case.program, structure, context, importance)
        return [torch.tensor(each) for each in found]

    blind = replace(case.context(), calibration=None)
    for context, same in ((case.context(), "activation"), (blind, "magnitude")):
        for own, wanted in zip(scores("auto", context), scores(same, context), strict=True):
            assert torch.equal(own, wanted)


class Read(nn.Module):
    def __init__(self, kind, bidirectional):
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.last = kind(6, 5, num_layers=2, batch_first=True, bidirectional=bidirectional)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))[0]


@pytest.mark.parametrize(
    ("model", "x", "taken"),
    [
        (nn.Sequential(conv(3, 6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3)), (4, 3, 8, 8), (0,)),
        (Read(nn.LSTM, True), (4, 7, 3), (1, 1)),
        (Read(nn.GRU, False), (4, 7, 3), (1,)),
    ],
    ids=["transposed", "lstm", "gru"],
)
def test_by_activation_is_by_the_norms_of_what_is_multiplied(model, x, taken):
    case = case_of(model, random(*x))
    structure = find_groups(case.program)
    context, makers = case.context(), ("0.weight", "first.weight")
    all_scores = scores_of(case.program, structure, context, "activation")
    (i,) = [i for i, group in enumerate(structure.groups) if group.name in makers]
    sides = structure.groups[i].sides
    takers = [side for side in sides if side.tensor.dim() > 1 and side.name not in makers]
    assert tuple(side.dim for side in takers) == taken
    first = case.program.leaf(next(iter(case.program.find(nn.Conv2d, nn.Linear))))
    outputs = [torch.relu(first(x)) for (x,) in context.calibration]
    rows = torch.cat([y.movedim(1 if y.dim() == 4 else -1, 0).flatten(1) for y in outputs], 1)
    weights = sum(t.tensor.movedim(t.dim, 0).flatten(1).square().sum(1) for t in takers)
    wanted = (weights * rows.square().mean(1)).sqrt()
    torch.testing.assert_close(torch.tensor(all_scores[i]), wanted.detach())


def test_by_activation_it_uses_weights_where_data_tell_nothing():
    """What a parameter outside of layers multiplies is not seen."""

    class Multiplied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.weight = conv(3, 8), nn.Parameter(torch.randn(8, 2))

        def forward(self, x):
            return torch.relu(self.first(x)).mean((2, 3)) @ self.weight

    case = case_of(Multiplied(), random(4, 3, 8, 8))
    structure = find_groups(case.program)
    (by_data,), (by_weights,) = (
        scores_of(case.program, structure, case.context(), importance)
        for importance in ("activation", "magnitude")
    )
    assert by_data.any()
    assert (by_data == by_weights).all()
    for importance, told in (("auto", 1), ("activation", 1), ("magnitude", 0)):
        _, result = pruned(case, importance=importance)
        assert result.details["unseen"] == told
        assert ("1 groups by weights" in result.summary) == bool(told)


def test_gradients_are_of_the_users_loss():
    case = image_case(6)
    structure = find_groups(case.program)
    data = [(case.inputs[0][0], torch.tensor([0, 1, 2, 0]))]
    context = replace(case.context(), training=Trainer(Training(data)))
    (scores,) = scores_of(case.program, structure, context, "gradient")
    loss = nn.functional.cross_entropy(case.program.call(data[0][0]), data[0][1])
    loss.backward()
    own = dict(case.program.module.named_parameters())
    (group,) = structure.groups
    wanted = torch.zeros(6, dtype=torch.float64)
    for side in group.sides:
        if side.name in own:
            each = own[side.name].grad.abs().movedim(side.dim, 0).reshape(6, -1).sum(1)
            wanted += each[torch.tensor(side.positions).flatten()]
    torch.testing.assert_close(torch.tensor(scores), wanted)


@pytest.mark.parametrize("importance", ["activation", "gradient", "taylor"])
def test_data_are_asked_for(importance):
    case = image_case(6)
    context = replace(case.context(), calibration=None)
    with pytest.raises(CalibrationError, match=r"needs (calibration )?data"):
        Prune(importance=importance).run(case.program.clone(), context)


def test_chance_is_seeded():
    case, seeds = image_case(32), (0, 0, 1)
    found = []
    for seed in seeds:
        program = case.program.clone()
        Prune(importance="random").run(program, replace(case.context(), seed=seed))
        found.append(program.fingerprint())
    assert found[0] == found[1] != found[2]
