"""The pass: how much goes, of what, and what is left."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fxopt
from fxopt.cost import Target
from fxopt.errors import CalibrationError, PassError
from fxopt.passes import Context, format_pass
from fxopt.registry import default_registry
from fxopt.testing import check_pass, run_pass
from fxopt.training import Trainer, Training
from fxopt_prune import Prune
from fxopt_prune.channels import find_groups
from fxopt_prune.importance import scores_of
from tests.pipeline.support import run
from tests.plugins.prune.support import case_of, conv, groups_of, random


def chain(*channels, last=3):
    layers = []
    for inputs, outputs in zip((3, *channels), channels, strict=False):
        layers += [conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], last)
    )


def image_case(*channels):
    return case_of(chain(*channels), random(4, 3, 8, 8))


def widths(program):
    return [program.leaf(node).out_channels for node in program.find(nn.Conv2d)]


def pruned(case, **settings):
    return run_pass(Prune(**settings), case)


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
        image_case(20, 20, 20), layers=("3=0.5", "6.*=0.1"), round_to=1, skip=("0",)
    )
    assert widths(program) == [20, 10, 18]


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


# -- importance ------------------------------------------------------------------------------


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


# -- reconstruction --------------------------------------------------------------------------


def error(case, program):
    (wanted, *_), (got, *_) = case.outputs()[0], case.outputs(program)[0]
    return float((got - wanted).norm() / wanted.norm())


def test_what_is_redundant_can_go_without_a_loss():
    """Channels that are copies of others are made up for exactly."""
    model = nn.Sequential(conv(3, 6, bias=False), nn.ReLU(), conv(6, 8), nn.Tanh(), conv(8, 2))
    case = case_of(model, random(4, 3, 8, 8))
    first, *_ = case.program.find(nn.Conv2d)
    with torch.no_grad():
        weight = case.program.leaf(first).weight
        weight[3:] = 0.5 * weight[:3]
    settings = {"layers": ("0=0.5", "2=0"), "round_to": 1}
    plain, _ = pruned(case, reconstruct=False, **settings)
    fitted, result = pruned(case, **settings)
    assert widths(fitted) == [3, 8, 2]
    assert error(case, plain) > 0.1
    assert error(case, fitted) < 2e-3  # the ridge holds weights back a little
    assert result.details["fitted"] == 3


@pytest.mark.parametrize("channels", [(16,), (16, 24)])
def test_fitting_errs_less(channels):
    case = image_case(*channels)
    plain, _ = pruned(case, reconstruct=False)
    fitted, _ = pruned(case)
    assert error(case, fitted) < 0.7 * error(case, plain)


def test_one_rewrite_is_removal_and_fitting():
    case = image_case(16)
    for limit, like in ((0, case.program), (1, pruned(case)[0])):
        program = case.program.clone()
        program.rewrite_limit = limit
        Prune().run(program, case.context())
        assert program.fingerprint() == like.fingerprint()


@pytest.mark.parametrize("behind", [nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False)])
def test_a_batch_norm_takes_up_the_constant_part_of_what_is_missing(behind):
    """A channel that hardly varies is worth no weight, but a constant."""
    layers = conv(3, 8), nn.Softplus(), nn.Conv2d(8, 6, 1, bias=False), behind
    model = nn.Sequential(*layers)
    case = case_of(model, random(4, 3, 8, 8))
    first, second = (case.program.leaf(node) for node in case.program.find(nn.Conv2d))
    with torch.no_grad():
        first.weight[:4] *= 1e-3
        second.weight[:, 4:] *= 4.0  # so that the constant channels go
    mean = behind.running_mean.clone()
    plain, _ = pruned(case, ratio=0.5, round_to=1, reconstruct=False)
    fitted, result = pruned(case, ratio=0.5, round_to=1)
    (norm,) = fitted.find(nn.BatchNorm2d)
    assert widths(fitted) == [4, 6]
    assert result.details["fitted"] == 2
    assert error(case, fitted) < 0.05 * error(case, plain)
    assert not torch.equal(fitted.leaf(norm).running_mean, mean)
    assert torch.equal(behind.running_mean, mean)  # the user's


def test_a_batch_norm_that_others_use_too_stays():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = conv(3, 8), nn.BatchNorm2d(6, affine=False)
            self.left, self.right = conv(8, 6, bias=False), conv(8, 6, bias=False)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            return self.norm(self.left(x)), self.norm(self.right(x))

    case = case_of(Shared(), random(4, 3, 8, 8))
    fitted, _ = pruned(case, ratio=0.5, round_to=1)
    before, after = (
        [program.leaf(node).running_mean for node in program.find(nn.BatchNorm2d)]
        for program in (case.program, fitted)
    )
    assert len(before) == len(after) == 2
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_layers_called_twice_are_fitted_once_or_left():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.twice, self.head = conv(3, 8), conv(8, 8), conv(8, 2)

        def forward(self, x):
            return self.head(self.twice(torch.relu(self.twice(self.stem(x)))))

    case = case_of(Twice(), random(4, 3, 8, 8))
    fitted, result = pruned(case)
    fitted.verify()
    assert result.details["fitted"] == 2


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
