"""Units that are zero go, and nothing changes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fxopt.cost import find_target
from fxopt.errors import PassError
from fxopt.passes import Context
from fxopt.plugin import size_hint
from fxopt.testing import check_pass, run_pass
from fxopt_prune import RemoveZeros
from fxopt_prune.channels import find_groups
from fxopt_prune.shrink import dead, may_be_zero, rows_to_run, zero_units, zeroed
from tests.plugins.prune.models import MODELS, case_named
from tests.plugins.prune.support import case_of, conv, drawn, random


def squeezed(channels=8):
    """A gate of a channel that is zero is one half: it multiplies zeros."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = conv(3, channels, bias=False), nn.BatchNorm2d(channels)
            self.less, self.more = nn.Linear(channels, 4), nn.Linear(4, channels)
            self.head = conv(channels, 2)

        def forward(self, x):
            x = torch.relu(self.norm(self.stem(x)))
            gate = self.more(torch.relu(self.less(x.mean((2, 3))))).sigmoid()
            return self.head(x * gate[:, :, None, None])

    return Net()


def with_zero_filters(model, *channels, shift=0.0, stem="stem", norm="norm"):
    """The first convolution makes nothing of some channels, which the norm shifts."""
    case = case_of(model, random(2, 3, 6, 6))
    weights = case.program.module.state_dict()
    for name in (f"{stem}.weight", f"{norm}.running_mean"):
        weights[name][list(channels)] = 0
    weights[f"{norm}.bias"][list(channels)] = shift
    return case


def chain(activation):
    return nn.Sequential(conv(3, 8, bias=False), nn.BatchNorm2d(8), activation, conv(8, 2))


def removed(case):
    """What is left, after a look at what it computes."""
    program, result = run_pass(RemoveZeros(), case)
    for actual, expected in zip(case.outputs(program), case.outputs(case.program), strict=True):
        for one, other in zip(actual, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    return program, result.details["units"]


@pytest.mark.parametrize("name", MODELS)
def test_what_is_zero_everywhere_goes(name):
    case = case_named(name)
    structure = find_groups(case.program)
    units = drawn(structure, 0.4)
    case = replace(case, program=zeroed(case.program, structure, units))
    _, count = removed(case)
    assert count >= len(units)


def test_zero_filters_go_through_gates_whatever_is_behind():
    program, count = removed(with_zero_filters(squeezed(), 1, 4, 5))
    assert count == 3
    assert program.module.stem.weight.shape[0] == 5
    assert program.module.more.weight.shape == (5, 4)


@pytest.mark.parametrize(
    ("activation", "shift", "count"),
    [
        (nn.ReLU(), 0.0, 2),
        (nn.Hardswish(), 0.0, 2),
        (nn.PReLU(8), 0.0, 2),
        (nn.ReLU(), -1.0, 2),
        (nn.ReLU(), 1.0, 0),
        (nn.Sigmoid(), 0.0, 0),
        (nn.Hardshrink(50.0), 0.0, 2),
    ],
)
def test_what_is_no_zero_where_it_is_used_stays(activation, shift, count):
    case = with_zero_filters(chain(activation), 2, 7, shift=shift, stem="0", norm="1")
    assert removed(case)[1] == count


def test_a_layer_of_zeros_keeps_one():
    program, _ = removed(with_zero_filters(squeezed(), *range(8)))
    assert program.module.stem.weight.shape[0] == 1


def test_a_dense_model_is_left_alone():
    case = case_of(chain(nn.ReLU()), random(2, 3, 6, 6))
    _, result = run_pass(RemoveZeros(), case)
    assert not result.changed


def test_a_model_without_zeros_is_not_run(monkeypatch):
    monkeypatch.setattr("fxopt_prune.remove_zeros.zero_units", None)
    case = case_of(chain(nn.ReLU()), random(2, 3, 6, 6))
    case.program.module.state_dict()["1.bias"][:] = 0  # what is added makes no zeros
    _, result = run_pass(RemoveZeros(), case)
    assert result.details["units"] == 0


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_slice_of_zeros_is_found_along_any_dimension(dim):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(random(4, 3, 5))

        def forward(self, x):
            return torch.einsum("bi,eij->bej", x, self.weight)

    program = case_of(Experts().eval(), random(2, 3)).program
    assert not may_be_zero(program)
    program.module.state_dict()["weight"].select(dim, 1).zero_()
    assert may_be_zero(program)


def test_the_padding_of_a_table_is_no_unit():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 4, padding_idx=0)
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(self.table(x))

    program = case_of(Words(), torch.tensor([[1, 0, 3], [2, 4, 5]])).program
    table = program.module.state_dict()["table.weight"]
    table[0] = 0
    assert not may_be_zero(program)
    table[:, 2] = 0
    assert may_be_zero(program)


def test_what_is_put_beside_others_makes_nothing_zero():
    class Token(nn.Module):
        def __init__(self, scales):
            super().__init__()
            self.token, self.shift = (nn.Parameter(torch.ones(1, 1, 4)) for _ in range(2))
            self.layer, self.scales = nn.Linear(4, 3), scales

        def forward(self, x):
            x = torch.cat([self.token.expand(len(x), -1, -1), x + self.shift], dim=1)
            return self.layer(x * self.shift if self.scales else x)

    for scales in (False, True):
        program = case_of(Token(scales), random(2, 5, 4)).program
        for name in ("token", "shift"):
            program.module.state_dict()[name].zero_()
        assert may_be_zero(program) is scales


def test_a_norm_that_scales_by_zero_counts():
    case = case_of(chain(nn.ReLU()), random(2, 3, 6, 6))
    case.program.module.state_dict()["1.weight"][3] = 0
    assert may_be_zero(case.program)


def test_two_rows_of_a_batch_are_enough(monkeypatch):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = chain(nn.ReLU())

        def forward(self, x, shift, scale):
            return self.layers(x + shift[:, None, None, None]) * scale

    seen = []

    def noted(program, structure, inputs):
        seen.extend(tuple(tensor.shape) for tensor in inputs)
        return zero_units(program, structure, inputs)

    monkeypatch.setattr("fxopt_prune.remove_zeros.zero_units", noted)
    case = case_of(Net(), random(9, 3, 6, 6), random(9), random(6))
    case.program.module.state_dict()["layers.3.weight"][:, [1, 5]] = 0
    removed(case)
    assert seen == [(2, 3, 6, 6), (2,), (6,)]


class Attending(nn.Module):
    """torch's own attention takes rows and heads for one dimension."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize(("rows", "run"), [(1, 2), (2, 2), (5, 5), (6, 2)])
def test_heads_may_share_a_dimension_with_any_number_of_rows(rows, run):
    case = case_of(Attending(), random(rows, 4, 12))
    weights = case.program.module.state_dict()
    for name in ("weight", "bias"):
        weights[f"attention.out_proj.{name}"][5] = 0
    captured = size_hint(case.program.inputs[0].meta["val"].shape[0])
    assert rows_to_run(case.program, find_groups(case.program), captured, 2) == run
    program, count = removed(case)
    assert count == 1
    assert program.module.attention.out_proj.weight.shape == (11, 12)
    assert program.module.head.weight.shape == (2, 11)


@pytest.mark.parametrize(
    ("units", "count", "fewer"),
    [
        ([1, 2, 1, 2, 1, 2, 1, 2], 4, [1, 2, 1, 2]),  # rows of two heads
        ([1, 1, 1, 1, 2, 2, 2, 2], 4, [1, 1, 2, 2]),  # heads of four rows
        ([1, 2, 3], 3, [1, 2, 3]),
        ([1, 2, 1, 3], 2, None),  # rows differ
        ([1, 2, 1, 2, 1, 2], 4, None),
        ([1, 2], 0, None),
    ],
)
def test_units_of_fewer_rows(units, count, fewer):
    found = dead._of_fewer_rows(np.array(units), count)
    assert fewer == (None if found is None else found.tolist())


@pytest.mark.parametrize(
    "check", check_pass(RemoveZeros(), cases=[with_zero_filters(squeezed(), 0, 3)]), ids=str
)
def test_conformance(check):
    check()


def test_it_says_what_it_needs():
    case = case_of(chain(nn.ReLU()), random(2, 3, 6, 6))
    with pytest.raises(PassError, match="no examples"):
        RemoveZeros().run(case.program.clone(), Context(find_target("cpu")))


def test_numbers_are_drawn_once_and_come_in_another_order_each_time():
    numbers = dead._Numbers()
    like = torch.zeros(3, 5, 7)
    first, second = numbers.draw(like, 1.0), numbers.draw(like, 1.0)
    assert first.shape == second.shape == like.shape
    assert (first != second).all()
    first.zero_()  # what a call does to its inputs does not come back
    assert all((numbers.draw(like, scale) != 0).all() for scale in (1.0, -8.0) * 20)
    assert numbers.draw(like.double(), 2.0).dtype is torch.float64
    many = numbers.draw(torch.zeros(dead._DRAWN), 1.0)
    assert 0.99 < many.std() < 1.01
