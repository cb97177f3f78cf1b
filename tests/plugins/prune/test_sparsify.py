"""Single weights become zero: which, how many, in which pattern, and that training keeps them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fxopt.errors import CalibrationError, PassError
from fxopt.testing import check_pass, run_pass
from fxopt.training import Trainer, Training
from fxopt_prune import Sparsify
from fxopt_recover import Distill
from tests.plugins.prune.support import Task, case_of, conv, random

CASE = case_of(
    nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 6), nn.Flatten(), nn.Linear(6 * 36, 4)),
    random(4, 3, 6, 6),
)


def weights(program):
    return {str(n.target): program.leaf(n).weight for n in program.find(nn.Conv2d, nn.Linear)}


def zeros(weight):
    return float((weight == 0).double().mean())


@pytest.mark.parametrize(
    "check",
    check_pass(
        Sparsify(), cases=[CASE], expected_failures={}
    ),
    ids=str,
)  # fmt: skip
def test_conformance(check):
    check()


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("importance", ["magnitude", "activation"])
def test_each_layer_loses_its_share(ratio, importance):
    program, result = run_pass(Sparsify(ratio=ratio, importance=importance), CASE)
    for name, weight in weights(program).items():
        size = weight[0].numel() if importance == "activation" else weight.numel()
        assert zeros(weight) == pytest.approx(round(ratio * size) / size), name
        stays, old = weight != 0, weights(CASE.program)[name]
        assert torch.equal(weight[stays], old[stays])
    assert result.changed == (ratio > 0) or result.details["zeros"] == 0


def test_layers_may_have_ratios_of_their_own():
    for scope in ("layer", "global"):
        item = Sparsify(ratio=0.5, layers=("0=0", "[24]=0.25"), scope=scope)
        program, _ = run_pass(item, CASE)
        assert [zeros(each) for each in weights(program).values()] == [0.0, 0.25, 0.25]
    program, _ = run_pass(Sparsify(ratio=0.4, layers=("4=0.9",), scope="global"), CASE)
    first, second, last = weights(program).values()
    assert zeros(last) == pytest.approx(0.9, abs=1e-3)
    assert zeros(torch.cat([first.flatten(), second.flatten()])) == pytest.approx(0.4, abs=1e-3)
    with pytest.raises(PassError, match="no such layer"):
        run_pass(Sparsify(layers=("typo=0.5",)), CASE)


@pytest.mark.parametrize("importance", ["gradient", "taylor"])
def test_weights_that_the_loss_does_not_depend_on_go_first(importance):
    """The first outputs are cut off; their weights are large, and change nothing."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight[:4] *= 10
    case = case_of(model, random(5, 6))
    with torch.no_grad():
        case.program.leaf(next(iter(case.program.find(nn.Linear)))).bias[:4] = -1e3
    labelled = Training([(case.inputs[0][0], torch.tensor([0, 1, 2, 0, 1]))])
    for training in (Trainer(labelled), None):
        context = replace(case.context(), training=training)
        program = case.program.clone()
        Sparsify(importance=importance, skip=("2",)).run(program, context)
        (weight, _) = weights(program).values()
        assert not weight[:4].any()
        assert weight[4:].all()


def test_chance_is_seeded():
    found = []
    for seed in (0, 0, 1):
        program = CASE.program.clone()
        Sparsify(importance="random").run(program, replace(CASE.context(), seed=seed))
        found.append(program.fingerprint())
    assert found[0] == found[1] != found[2]


class Noting(Trainer):
    """Notes which weights are zero before and after each training."""

    noted = []

    def train(self, program, *, name="training", **others):
        before = [weight == 0 for weight in weights(program).values()]
        trained = super().train(program, name=name, **others)
        self.noted.append((name, before, [weight == 0 for weight in weights(program).values()]))
        return trained


@pytest.mark.parametrize("importance", ["magnitude", "activation", "random"])
def test_steps_end_where_one_would_and_zeros_stay(importance):
    data = [(CASE.inputs[0][0], torch.tensor([0, 1, 2, 0]))]
    trainer = Noting(Training(data, epochs=2, learning_rate=1e-2))
    Noting.noted.clear()
    program = CASE.program.clone()
    context = replace(CASE.context(), training=trainer)
    item = Sparsify(ratio=0.75, layers=("4=0.19",), importance=importance, steps=2)
    result = item.run(program, context)
    ((name, before, after),) = Noting.noted
    assert name == "sparsify_step_1"
    for kind in (before, after):
        assert [float(mask.double().mean()) for mask in kind] == pytest.approx(
            [0.5, 0.5, 0.1], abs=0.02
        )
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    ends = [weight == 0 for weight in weights(program).values()]
    assert [float(end.double().mean()) for end in ends] == pytest.approx(
        [0.75, 0.75, 0.19], abs=0.02
    )
    assert not any(bool((mask & ~end).any()) for mask, end in zip(after, ends, strict=True))
    assert len(result.rewrites) == 2


def test_the_smallest_go():
    program, _ = run_pass(Sparsify(ratio=0.5), CASE)
    for name, weight in weights(program).items():
        old = weights(CASE.program)[name].abs()
        assert old[weight == 0].max() <= old[weight != 0].min()


def test_activations_count():
    """What multiplies zeros goes first, however large it is."""
    x = random(4, 8)
    x[:, :4] *= 1e-3
    case = case_of(nn.Sequential(nn.Linear(8, 5)), x)
    program, _ = run_pass(Sparsify(importance="activation"), case)
    (weight,) = weights(program).values()
    assert not weight[:, :4].any()
    assert weight[:, 4:].all()
    with pytest.raises(CalibrationError, match="needs calibration data"):
        Sparsify(importance="activation").run(program, replace(case.context(), calibration=None))


def test_what_a_layer_takes_may_be_a_vector():
    program, _ = run_pass(Sparsify(importance="activation"), case_of(Task(), random(4, 6)))
    assert {name: zeros(weight) for name, weight in weights(program).items()} == dict.fromkeys(
        ("first", "second", "stem", "head"), 0.5
    )


def test_where_data_tell_nothing_it_says_so():
    model = nn.Sequential(conv(4, 8), conv(8, 8, groups=4), conv(8, 4, groups=2))
    for importance, told in (("activation", 2), ("magnitude", 0)):
        _, result = run_pass(Sparsify(importance=importance), case_of(model, random(2, 4, 6, 6)))
        assert result.details["unseen"] == told
        assert ("2 layers by weights alone" in result.summary) == bool(told)


def test_globally_and_by_threshold():
    program, _ = run_pass(Sparsify(ratio=0.4, scope="global"), CASE)
    every = torch.cat([weight.flatten() for weight in weights(program).values()])
    assert zeros(every) == pytest.approx(0.4, abs=0.01)
    assert len({round(zeros(weight), 2) for weight in weights(program).values()}) > 1
    program, _ = run_pass(Sparsify(threshold=0.05), CASE)
    for name, weight in weights(program).items():
        assert torch.equal(weight != 0, weights(CASE.program)[name].abs() >= 0.05)


@pytest.mark.parametrize(("pattern", "few", "many"), [("2:4", 2, 4), ("1:3", 1, 3)])
def test_patterns(pattern, few, many):
    program, _ = run_pass(Sparsify(pattern=pattern), CASE)
    for name, weight in weights(program).items():
        rows = weight.movedim(1, -1)
        whole = rows.shape[-1] - rows.shape[-1] % many
        blocks = rows[..., :whole].unflatten(-1, (-1, many))
        assert (((blocks != 0).sum(-1)) == few).all(), name
        assert rows[..., whole:].all()  # what is left over stays


def test_tied_weights_and_names():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    program, result = run_pass(Sparsify(), case_of(model, random(3, 6)))
    first, second = weights(program).values()
    assert first is second
    assert result.details["zeros"] == 18
    program, _ = run_pass(Sparsify(skip=("0", "4")), CASE)
    assert [zeros(weight) > 0 for weight in weights(program).values()] == [False, True, False]
    with pytest.raises(PassError, match="no such layer"):
        run_pass(Sparsify(skip=("typo",)), CASE)


def test_frozen_weights_become_sparse_and_stay_frozen():
    case = case_of(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), random(4, 6))
    for parameter in case.program.module.parameters():
        parameter.requires_grad_(False)
    for importance in ("magnitude", "activation"):
        program, result = run_pass(Sparsify(importance=importance), case)
        assert result.details["zeros"] == 36
        assert not any(parameter.requires_grad for parameter in program.module.parameters())


def test_there_may_be_nothing_to_do():
    case = case_of(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12)), random(2, 3, 4))
    reason = Sparsify().inapplicable(case.program, case.context())
    assert reason == "there is no linear layer and no convolution"
    for item in (Sparsify(skip=("*",)), Sparsify(threshold=1e-9)):
        program, result = run_pass(item, CASE)
        assert not result.changed
        assert program.fingerprint() == CASE.program.fingerprint()


@pytest.mark.parametrize(
    "settings",
    [{"ratio": 1.0}, {"threshold": -1.0}, {"pattern": "4:2"}, {"pattern": "some"},
     {"pattern": "2:4", "threshold": 0.1}, {"pattern": "2:4", "scope": "global"},
     {"threshold": 0.1, "importance": "activation"}, {"steps": 0}, {"layers": ("conv",)},
     {"layers": ("4=0.1",), "threshold": 0.1}, {"steps": 2, "pattern": "2:4"}],
)  # fmt: skip
def test_settings_are_checked(settings):
    with pytest.raises(ValueError, match="must"):
        Sparsify(**settings)


def test_training_keeps_the_zeros():
    program, _ = run_pass(Sparsify(ratio=0.7), CASE)
    before = {name: weight == 0 for name, weight in weights(program).items()}
    old = {name: weight.clone() for name, weight in weights(program).items()}
    training = Training([CASE.inputs[0][0]], loss=None, epochs=3, learning_rate=1e-2)
    context = replace(CASE.context(), training=Trainer(training), original=CASE.program)
    Distill().run(program, context)
    for name, weight in weights(program).items():
        assert not weight[before[name]].any()
        assert not torch.equal(weight, old[name])
