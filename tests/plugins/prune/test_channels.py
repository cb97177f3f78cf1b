"""Which slices go together: each kind of operation against zeros in the place of what goes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fxopt.testing.strategies import generated_cases
from fxopt_prune.channels import find_groups
from tests.plugins.prune.models import (
    MODELS,
    Forward,
    case_named,
)
from tests.plugins.prune.support import (
    case_of,
    check,
    check_model,
    conv,
    groups_of,
    random,
    removed,
)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_removal_is_what_zeros_are(name, share):
    structure = check(case_named(name), share)
    assert not structure.barriers
    assert any(group.exact and len(group) > 1 for group in structure.groups)


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "residual": {"stem.weight": 8, "block.0.weight": 6},
        "dense": {"stem.weight": 8, "first.weight": 4, "second.weight": 4},
        "attention": {"attention.in_proj_weight": 4},
        "grouped query": {"q.weight": 3},
        "grouped query, by the operator": {"q.weight": 3},
        "expanded query": {"q.weight": 2},
        "patches": {"patch.weight": 12, "mlp.0.weight": 20},
        "recurrent": {"embedding.weight": 8, "lstm.weight_hh_l0": 5, "gru.weight_hh_l0": 6},
        "groups": {"0.weight": 4, "1.weight": 6, "2.weight": 6},
        "many groups": {"0.weight": 4, "2.weight": 6},
        "upsampled": {"stem.weight": 8, "wide.weight": 6},
        "shared": {"stem.weight": 8},
    }.items(),
)
def test_units_are_as_fine_as_can_be(name, expected):
    assert groups_of(find_groups(case_named(name).program)) == expected


def test_a_layer_norm_sees_what_goes():
    case = case_of(
        nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3)), random(2, 6)
    )
    program, _, structure = removed(case, inexact=True)
    assert [(group.exact, len(group)) for group in structure.groups] == [(False, 12)]
    (norm,) = program.find(nn.LayerNorm)
    assert program.leaf(norm).normalized_shape == (7,)
    assert all(torch.isfinite(y).all() for (y,) in case.outputs(program))


def test_a_group_norm_keeps_groups_of_one_size():
    case = case_of(nn.Sequential(conv(3, 12), nn.GroupNorm(4, 12), conv(12, 3)), random(2, 3, 6, 6))
    program, _, structure = removed(case, inexact=True)
    assert [len(group) for group in structure.groups] == [3]
    (norm,) = program.find(nn.GroupNorm)
    assert (program.leaf(norm).num_groups, program.leaf(norm).num_channels) == (4, 8)


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = conv(3, 8), conv(8, 8), conv(8, 3)

    def forward(self, x):
        return self.third(torch.relu(self.second(torch.cumsum(self.first(x).sort(dim=1)[0], 1))))


def test_axes_are_swapped_and_a_bias_is_expanded():
    def call(m, x):
        y = m.first(x).swapaxes(1, -1)
        return m.last((y + m.bias.expand_as(y)).swapdims(-1, 1))

    model = Forward(call, first=conv(3, 8), last=conv(8, 3))
    model.bias = nn.Parameter(torch.randn(1, 1, 1, 8))
    structure = check_model(model, random(2, 3, 6, 6))
    assert not structure.barriers
    assert groups_of(structure) == {"first.weight": 8}


@pytest.mark.parametrize(
    "gate",
    [
        lambda m, x, a: x[:, :1, :1, :1].expand_as(a),
        lambda m, x, a: x[:, :1, :1, :1].expand(a.shape),
        lambda m, x, a: m.gate.expand_as(a),
    ],
    ids=["activation", "sizes", "parameter"],
)
def test_what_is_expanded_to_a_size_goes_with_what_has_it(gate):
    def call(m, x):
        a = m.stem(x)
        return m.head(torch.cat([a, gate(m, x, a)], 1))

    model = Forward(call, stem=conv(3, 8), head=conv(16, 3))
    model.gate = nn.Parameter(torch.randn(1, 1, 1, 1))
    structure = check_model(model, random(2, 3, 6, 6))
    assert not structure.barriers


def test_what_is_not_known_is_a_named_barrier():
    structure = check_model(Unknown(), random(2, 3, 6, 6))
    assert groups_of(structure) == {"second.weight": 8}
    ((node, reason),) = structure.barriers.items()
    assert "sort" in node.name
    assert "aten.sort.default is not known" in reason


def test_reasons_are_told():
    structure = check_model(Unknown(), random(2, 3, 6, 6))
    reasons = set(structure.classes.reasons.values())
    assert any("aten.sort.default is not known at %sort" in reason for reason in reasons)
    assert any("an output of the model" in reason for reason in reasons)


def test_hooks_may_do_anything():
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    case = case_of(model, random(2, 4))
    (_, second, _) = case.program.find(nn.Linear)
    case.program.leaf(second).register_forward_hook(lambda m, i, y: y.flip(-1))
    structure = find_groups(case.program)
    assert not structure.groups
    assert list(structure.barriers) == [second]


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    model[2].weight = model[0].weight
    case = case_of(nn.Sequential(nn.Linear(4, 6), *model), random(2, 4))
    program, _, structure = removed(case)
    check(case)
    tied = [program.leaf(node).weight for node in program.find(nn.Linear)][1:3]
    assert tied[0] is tied[1]
    assert tied[0].shape == (4, 4)
    assert [len(group) for group in structure.groups] == [6]


def test_a_norm_without_weights_that_is_called_twice():
    def call(m, x):
        x = m.norm(torch.relu(m.first(x)))
        return m.third(m.norm(torch.relu(m.second(x))))

    layers = {"first": conv(3, 8), "second": conv(8, 8), "third": conv(8, 3)}
    model = Forward(call, **layers, norm=nn.InstanceNorm2d(8))
    structure = check_model(model, random(2, 3, 6, 6))
    assert groups_of(structure) == {"first.weight": 8, "second.weight": 8}


@pytest.mark.parametrize(
    ("norm", "inexact"),
    [
        (lambda m, x: F.instance_norm(x), False),
        (lambda m, x: F.group_norm(x, 2), True),
        (lambda m, x: F.layer_norm(x.movedim(1, -1), (8,)).movedim(-1, 1), True),
        (lambda m, x: F.rms_norm(x.movedim(1, -1), (8,)).movedim(-1, 1), True),
    ],
)
def test_norms_as_functions(norm, inexact):
    model = Forward(
        lambda m, x: m.third(m.second(norm(m, m.first(x)))),
        first=conv(3, 8), second=conv(8, 6), third=conv(6, 3),
    )  # fmt: skip
    case = case_of(model, random(2, 3, 6, 6))
    structure = check(case)
    assert not structure.barriers
    assert {group.name: group.exact for group in structure.groups} == {
        "first.weight": not inexact,
        "second.weight": True,
    }
    program, _, _ = removed(case, inexact=True)
    assert all(torch.isfinite(y).all() for (y,) in case.outputs(program))


@settings(max_examples=20, deadline=None)
@given(case=generated_cases(), share=st.sampled_from([0.1, 0.3, 0.6]), seed=st.integers(0, 99))
def test_generated_models(case, share, seed):
    check(case, share, seed)


def test_sizes_that_depend_on_values_are_no_obstacle():
    def some_rows(m, x):
        y = m.first(x).relu()
        kept = torch.nonzero(x.sum(1) > 0)[:, 0]
        padded = torch.cat([torch.zeros(kept.shape[0], 12).double(), y[kept]])
        return m.last(m.second(padded).relu())

    layers = {"first": nn.Linear(8, 12), "second": nn.Linear(12, 12), "last": nn.Linear(12, 4)}
    structure = check_model(Forward(some_rows, **layers), random(6, 8))
    assert [len(group) for group in structure.groups] == [12, 12]


def test_rows_split_at_a_size_that_depends_on_values_stay():
    def pairs(m, x):
        kept = torch.nonzero(x.sum(1) > 0)
        y = m.first(torch.zeros(kept.shape[0], 2, 8).double()).reshape(-1, 12)
        return m.last(y + m.other(x[:1]))

    layers = {"first": nn.Linear(8, 12), "other": nn.Linear(8, 12), "last": nn.Linear(12, 4)}
    assert check_model(Forward(pairs, **layers), random(6, 8)).groups
