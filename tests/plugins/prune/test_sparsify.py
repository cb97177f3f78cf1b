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
     {"threshold": 0.1, "importance": "activation"}],
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
