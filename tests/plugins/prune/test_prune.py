"""The pass: how much goes, of what, and what is left."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fxopt
from fxopt.cost import Target
from fxopt.errors import PassError
from fxopt.passes import Context, format_pass
from fxopt.registry import default_registry
from fxopt.testing import check_pass
from fxopt.training import Trainer, Training
from fxopt_prune import Prune
from fxopt_prune.channels import find_groups
from tests.pipeline.support import run
from tests.plugins.prune.support import (
    case_of,
    chain,
    conv,
    groups_of,
    image_case,
    pruned,
    random,
    widths,
)


@pytest.mark.parametrize(
    "check",
    check_pass(
        Prune(),
        cases=[image_case(8, 6)],
        expected_failures={"is_idempotent[case]": "what is left can be pruned again"},
    ),
    ids=str,
)
def test_conformance(check):
    check()


@pytest.mark.parametrize(
    ("ratio", "round_to", "expected"),
    [
        (0.3, 1, [14, 22, 34]),
        (0.5, 1, [10, 16, 24]),
        (0.3, 8, [16, 24, 32]),  # 14 and 22 and 34 to the nearest multiples
        (0.9, 8, [8, 8, 8]),
        (0.9, 1, [2, 3, 5]),
        (0.99, 1, [1, 1, 1]),
        (0.0, 1, [20, 32, 48]),
        (0.3, 64, [14, 22, 34]),  # too small for such multiples
    ],
)
def test_shares_and_multiples(ratio, round_to, expected):
    program, result = pruned(image_case(20, 32, 48), ratio=ratio, round_to=round_to)
    assert widths(program) == expected
    assert result.changed == (ratio > 0)


@pytest.mark.parametrize(
    ("features", "expected"),
    [((), [6, 8, 24, 48, 72]), (("avx2", "avx512f"), [6, 8, 24, 48, 80])],
)
def test_by_itself_it_takes_multiples_that_suit_layer_and_target(features, expected):
    target = Target("cpu", torch.device("cpu"), 1, features)
    program = image_case(8, 16, 32, 64, 104).program
    Prune(reconstruct=False).run(program, Context(target))
    assert widths(program) == expected


def test_the_smallest_go():
    case = image_case(6)
    (node,) = case.program.find(nn.Conv2d)
    layer = case.program.leaf(node)
    with torch.no_grad():
        layer.weight[[1, 4]] *= 1e-3
    wanted = layer.weight[[0, 2, 3, 5]].clone()
    settings = {"importance": "magnitude", "reconstruct": False}
    program, _ = pruned(case, ratio=1 / 3, round_to=1, **settings)
    (node,) = program.find(nn.Conv2d)
    assert torch.equal(program.leaf(node).weight, wanted)


def test_of_equal_ones_the_first_go():
    case = image_case(4)
    with torch.no_grad():
        for parameter in case.program.module.parameters():
            parameter.fill_(0.5)
    program, result = pruned(case, ratio=0.5, round_to=1, reconstruct=False)
    assert widths(program) == [2]
    assert result.details["units"] == 2


def test_layers_can_have_ratios_of_their_own_or_stay():
    program, _ = pruned(
        image_case(20, 20, 20), layers=("6.*=0.1", "3=0.5"), round_to=1, skip=("0",)
    )
    assert widths(program) == [20, 10, 18]


def test_a_ratio_is_of_a_layers_own_channels_not_of_those_that_it_takes():
    program, _ = pruned(image_case(20, 20, 20), ratio=0.0, layers=("3=0.5",), round_to=1)
    assert widths(program) == [20, 10, 20]


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 3)), random(4, 3)),
        (nn.Sequential(conv(3, 8), nn.ConvTranspose2d(8, 3, 2)), random(2, 3, 8, 8)),
        (nn.Sequential(nn.ConvTranspose2d(3, 8, 2), conv(8, 3)), random(2, 3, 8, 8)),
        (nn.Sequential(conv(3, 8), conv(8, 8, groups=2, bias=False)), random(2, 3, 8, 8)),
        (nn.Sequential(nn.Embedding(9, 8), nn.LSTM(8, 3)), torch.arange(8).reshape(4, 2)),
    ],
    ids=["linear", "to transposed", "of transposed", "groups", "recurrent"],
)
def test_skipped_layers_keep_what_they_yield_not_what_they_take(model, x):
    case = case_of(model, x)
    free, taking, making = (
        pruned(case, ratio=0.5, round_to=1, skip=skip)[1].details["removed"]
        for skip in ((), ("1",), ("0",))
    )
    assert free["0.weight"] == taking["0.weight"] > 0
    assert "0.weight" not in making


class Tied(nn.Module):
    """An embedding whose table is the weight of the last layer too."""

    def __init__(self):
        super().__init__()
        self.table, self.inner, self.last = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9)
        self.last.weight = self.table.weight

    def forward(self, x):
        x = self.table(x)
        return self.last(x + self.inner(x))


class Sliced(nn.Module):
    """Each third of one weight multiplies something else, as in cross attention."""

    def __init__(self):
        super().__init__()
        self.stem, self.parts = nn.Linear(3, 8), nn.Parameter(torch.randn(12, 8))

    def forward(self, x):
        x = self.stem(x)
        return nn.functional.linear(x, self.parts[:6]) * nn.functional.linear(x, self.parts[6:])


def test_a_tied_table_is_one_that_makes_channels():
    case = case_of(Tied(), torch.arange(8).reshape(4, 2))
    settings = {"ratio": 0.5, "round_to": 1}
    assert pruned(case, **settings)[1].details["units"] == 4
    assert pruned(case, skip=("table",), **settings)[1].details["units"] == 0


def test_of_a_part_of_a_weight_too_it_is_the_rows_that_make():
    _, result = pruned(case_of(Sliced(), random(4, 3)), skip=("parts",), ratio=0.5, round_to=1)
    assert result.details["removed"] == {"stem.weight": 4}


class Halves(nn.Module):
    """Two groups of channels that one layer makes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        left, right = self.stem(x).chunk(2, dim=1)
        return self.left(left), self.right(right)


@pytest.mark.parametrize("scope", ["layer", "work"])
def test_groups_of_one_name_count_together(scope):
    _, result = pruned(case_of(Halves(), random(4, 3)), scope=scope, ratio=0.5, round_to=1)
    assert result.details["groups"] == 2
    assert result.details["removed"] == {"stem.weight": result.details["units"]}


def test_a_ratio_of_a_layer_whose_channels_stay_is_an_error():
    assert widths(pruned(image_case(8), layers=("5=0",), round_to=1)[0]) == [6]
    with pytest.raises(PassError, match="channels of '5' can go"):
        pruned(image_case(8), layers=("5=0.5",))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_ratio_of_zero_protects_a_layer_whatever_the_multiple(scope):
    settings = {"ratio": 0.5, "layers": ("0=0",), "scope": scope, "reconstruct": False}
    program, _ = pruned(image_case(18, 32), **settings)
    assert widths(program) == [18, 16]


def test_globally_layers_with_a_ratio_of_their_own_stand_apart():
    settings = {"scope": "global", "round_to": 1, "reconstruct": False}
    program, _ = pruned(image_case(20, 20, 20), ratio=0.25, layers=("0=0.1", "6=0.8"), **settings)
    assert widths(program) == [18, 15, 4]


def test_globally_as_many_go_as_should_of_equal_ones_too():
    case = image_case(20, 20)
    with torch.no_grad():
        for side in (side for group in find_groups(case.program).groups for side in group.sides):
            side.tensor.index_fill_(side.dim, torch.arange(8), 0.0)
    settings = {"scope": "global", "importance": "magnitude", "reconstruct": False}
    program, _ = pruned(case, ratio=0.3, round_to=1, **settings)
    assert widths(program) == [12, 16]


def test_globally_layers_that_matter_less_lose_more():
    case = image_case(20, 20)
    structure = find_groups(case.program)
    with torch.no_grad():  # half of the first layer's channels hardly matter
        for side in structure.groups[0].sides:
            side.tensor.index_fill_(side.dim, torch.arange(10), 1e-6)
    program, _ = pruned(case, scope="global", ratio=0.25, round_to=1, reconstruct=False)
    assert widths(program) == [10, 20]


@pytest.mark.parametrize("round_to", [1, 8])
def test_steps_end_where_one_would(round_to):
    once, stepwise = (
        pruned(image_case(16, 32, 48), ratio=0.5, round_to=round_to, steps=steps)
        for steps in (1, 3)
    )
    assert widths(stepwise[0]) == widths(once[0]) == [8, 16, 24]
    assert stepwise[1].details["removed"] == once[1].details["removed"]
    assert stepwise[1].summary.startswith("48 of 96 units in 3 groups")
    assert len(stepwise[1].rewrites) == 3


class Noting(Trainer):
    """Notes what is trained, and how many channels there are then."""

    noted = []

    def train(self, program, *, name="training", **others):
        self.noted.append((name, widths(program)))
        return super().train(program, name=name, **others)


def test_between_steps_it_trains():
    case = image_case(16)
    data = [(case.inputs[0][0], torch.tensor([0, 1, 2, 0]))]
    Noting.noted.clear()
    for trainer in (Noting(Training(data, epochs=1)), Noting(Training([x for x, _ in data], None))):
        program = case.program.clone()
        context = replace(case.context(), training=trainer)
        Prune(ratio=0.75, round_to=1, steps=2).run(program, context)
        assert widths(program) == [4]
    assert Noting.noted == [("prune_step_1", [8])]  # and not without labels


def test_training_between_steps_keeps_zeros():
    case = image_case(16)
    program = case.program.clone()
    (node,) = program.find(nn.Conv2d)
    with torch.no_grad():
        program.leaf(node).weight[:, 1] = 0
    before = program.leaf(node).weight.clone()
    data = [(case.inputs[0][0], torch.tensor([0, 1, 2, 0]))]
    context = replace(case.context(), training=Trainer(Training(data, epochs=3)))
    Prune(ratio=0.5, round_to=1, steps=2, reconstruct=False).run(program, context)
    weight = program.leaf(node).weight
    assert not weight[:, 1].any()
    assert weight[:, 0].abs().min() > 0
    assert not any(torch.equal(row, old) for row in weight for old in before)  # it was trained


@pytest.mark.parametrize("name", ["0.typo", "nothing*"])
def test_names_that_match_nothing_are_errors(name):
    with pytest.raises(PassError, match="no such layer"):
        pruned(image_case(8), skip=(name,))


@pytest.mark.parametrize("pattern", ["0", "0*", "*0", "0.weight", "?.weight"])
def test_layers_are_named_by_their_own_or_their_weights_names(pattern):
    program, _ = pruned(image_case(8), ratio=0.0, round_to=1, layers=(f"{pattern}=0.5",))
    assert widths(program) == [4]


@pytest.mark.parametrize(
    "settings",
    [{"ratio": 1.0}, {"ratio": -0.1}, {"round_to": -1}, {"samples": 0}, {"steps": 0},
     {"layers": ("conv",)},
     {"layers": ("conv=2",)}, {"layers": ("=0.5",)}],
)  # fmt: skip
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="must"):
        Prune(**settings)


def test_the_text_form():
    item = Prune(ratio=0.4, layers=("layer4*=0.6",), scope="global")
    text = "prune{ratio=0.4,scope='global',layers=('layer4*=0.6',)}"
    assert default_registry().parse(text) == [item]
    assert default_registry().parse(format_pass(item)) == [item]


def test_nothing_to_prune():
    case = case_of(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), random(2, 3, 4))
    reason = Prune().inapplicable(case.program, case.context())
    assert reason is not None
    assert "no channel" in reason


def test_single_channels_stay():
    program, result = pruned(image_case(1, 1))
    assert not result.changed
    assert widths(program) == [1, 1]


def test_frozen_parameters_stay_frozen():
    case = image_case(8)
    for parameter in case.program.module.parameters():
        parameter.requires_grad_(False)
    program, _ = pruned(case, importance="taylor")
    assert not any(parameter.requires_grad for parameter in program.module.parameters())


# -- in a pipeline ---------------------------------------------------------------------------


def test_a_pipeline_with_folding_and_int8():
    torch.manual_seed(0)
    model, x = chain(16, 16).eval(), torch.randn(8, 3, 16, 16)
    fast = fxopt.optimize(
        model, (x,), passes="prune{ratio=0.5,round_to=8},fold_bn,quantize", calibration=[x],
        backends=["eager", "onednn"],
    )  # fmt: skip
    assert [record.name for record in fast.report.passes][:3] == ["prune", "fold_bn", "quantize"]
    assert fast.report.passes[0].status in ("applied", "rolled back")
    assert model[0].weight.shape[0] == 16  # the user's model is as it was
    assert fast(x).shape == (8, 3)
    assert fast(x[:3]).shape == (3, 3)


def test_a_drift_is_kept_by_pruning_less():
    case = image_case(32, 32)
    free = run([Prune(ratio=0.5, round_to=1)], case.program, context=case.context()).records[0]
    limit = 0.5 * free.drift
    kept = run(
        [Prune(ratio=0.5, round_to=1)], case.program, context=case.context(), max_drift=limit
    ).records[0]
    assert (free.status, kept.status) == ("applied", "applied")
    assert kept.drift <= limit
    assert 0 < kept.details["units"] < free.details["units"]
    assert free.work_after < kept.work_after < kept.work_before
    assert free.bytes_after < kept.bytes_after < kept.bytes_before


def test_groups_are_named_after_what_makes_them():
    assert groups_of(find_groups(image_case(4, 6).program)) == {"0.weight": 4, "3.weight": 6}
