"""``scope=work``: what goes is a share of the multiply-adds, and what matters least for them."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt.cost import multiply_adds
from fxopt.testing.strategies import generated_cases
from fxopt_prune.channels import find_groups
from fxopt_prune.select import Amounts
from fxopt_prune.shrink import remove
from fxopt_prune.work import Spending, works_of
from tests.plugins.prune.support import (
    Task,
    case_of,
    chain,
    conv,
    drawn,
    image_case,
    pruned,
    random,
    widths,
)


def work(program):
    return sum(multiply_adds(program).values())


def by_work(case, ratio, **settings):
    given = {"round_to": 1, "reconstruct": False, "importance": "magnitude"} | settings
    return pruned(case, scope="work", ratio=ratio, **given)[0]


def spending_of(program, groups):
    scores = [np.arange(1.0, len(group) + 1) for group in groups]
    return Spending(groups, scores, [1] * len(groups), works_of(program))


class Block(nn.Module):
    def __init__(self, stream, inner):
        super().__init__()
        self.first, self.second = conv(stream, inner), conv(inner, stream)

    def forward(self, x):
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def residual():
    blocks = [Block(16, 16), Block(16, 16)]
    return nn.Sequential(
        conv(3, 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)
    )


MODELS = {
    "chain": (lambda: chain(16, 24, 32), (2, 3, 8, 8)),
    "residual": (residual, (2, 3, 8, 8)),
    "depthwise": (
        lambda: nn.Sequential(conv(3, 16), conv(16, 16, groups=16), nn.ReLU(), conv(16, 8)),
        (2, 3, 8, 8),
    ),
    "recurrent": (lambda: Recurrent(), (2, 5, 6)),
    "of all examples": (Task, (4, 6)),
}


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 16, 2, batch_first=True), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_is_known_before(name):
    build, shape = MODELS[name]
    program = case_of(build(), random(*shape)).program
    structure = find_groups(program)
    spending = spending_of(program, structure.groups)
    units = drawn(structure, 0.4)
    for index, group in enumerate(structure.groups):
        spending.keep(index, sum(unit not in units for unit in group.units))
    with program.edit() as edit:
        remove(program, edit, structure, units, "some units")
    assert spending.work == pytest.approx(work(program), rel=1e-9)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_as_much_goes_as_should(name, ratio):
    build, shape = MODELS[name]
    case = case_of(build(), random(*shape))
    program = by_work(case, ratio)
    most = (1 - ratio) * work(case.program)
    assert 0.8 * most < work(program) <= most


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_no_step_more_goes(name, ratio):
    build, shape = MODELS[name]
    program = case_of(build(), random(*shape)).program
    groups = find_groups(program).groups
    spending = spending_of(program, groups)
    spending.spend(range(len(groups)), ratio)
    limit = (1 - ratio) * work(program)
    assert spending.work <= limit
    for index, kept in enumerate(list(spending.kept)):
        if kept < len(groups[index]):
            spending.keep(index, kept + 1)
            assert spending.work > limit
            spending.keep(index, kept)


@settings(max_examples=20, deadline=None)
@given(case=generated_cases(), ratio=st.sampled_from([0.0, 0.2, 0.6, 0.95]))
def test_generated_models(case, ratio):
    given = {"round_to": 1, "reconstruct": False, "importance": "magnitude"}
    program, result = pruned(case, scope="work", ratio=ratio, **given)
    program.verify()
    case.outputs(program)
    before, after = (sum(works_of(each).values()) for each in (case.program, program))
    assert after == before if ratio == 0 else after <= before
    assert after <= (1 - ratio) * before or result.details["removed"] == _all_but_one(case.program)


def _all_but_one(program):
    """How many units of each group can go that multiply something."""
    works = works_of(program)
    counts = Counter()
    for group in find_groups(program).groups:
        if len(group) > 1 and any(works.get(id(side.tensor)) for side in group.sides):
            counts[group.name] += len(group) - 1
    return counts


def test_what_one_layer_takes_goes_before_what_many_take():
    program = by_work(case_of(residual(), random(2, 3, 8, 8)), 0.4)
    stem, *blocks = widths(program)
    assert all(inner < stem - 2 for inner in blocks[::2])


def test_costly_layers_lose_more():
    layers = [conv(3, 32), nn.ReLU(), conv(32, 32), nn.MaxPool2d(8), conv(32, 32), conv(32, 4)]
    case = case_of(nn.Sequential(*layers), random(2, 3, 8, 8))
    first, second, third, _ = widths(by_work(case, 0.6))
    assert first < second < third == 32  # the third runs at one position, the others at 64


def test_layers_with_a_ratio_of_their_own_or_that_stay():
    case = image_case(20, 20, 20)
    program = by_work(case, 0.5, layers=("3=0.25",), skip=("0",))
    assert widths(program)[:2] == [20, 15]
    assert work(program) <= 0.5 * work(case.program)


def test_multiples_are_kept():
    program = by_work(image_case(32, 32, 32), 0.5, round_to=8)
    assert all(width % 8 == 0 for width in widths(program))


def test_at_least_a_step_of_each_layer_stays():
    assert widths(by_work(image_case(16, 32, 48), 0.999, round_to=8)) == [8, 8, 8]
    assert widths(by_work(image_case(4, 5, 6), 0.999)) == [1, 1, 1]


def test_steps_of_groups_are_what_settings_and_target_say():
    groups = find_groups(image_case(16, 64, 20).program).groups
    steps = [Amounts(0.5, {}, (16, 8)).step(group) for group in groups]
    assert steps == [8, 16, 8]
