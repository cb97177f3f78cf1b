"""What is left is fitted to what the layers yielded before."""

import pytest
import torch
from torch import nn

from fxopt_prune import Prune
from tests.plugins.prune.support import (
    Task,
    case_of,
    conv,
    image_case,
    pruned,
    random,
    widths,
)


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
    settings = {"layers": ("2=0", "0=0.5"), "round_to": 1}
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


def test_layers_that_take_a_vector_are_fitted_too():
    case = case_of(Task(), random(4, 6))
    fitted, result = pruned(case, ratio=0.5, round_to=1)
    assert result.details["fitted"] == 4
    assert error(case, fitted) < error(case, pruned(case, ratio=0.5, reconstruct=False)[0])


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


@pytest.mark.parametrize(
    ("layers", "shape", "moves"),
    [
        ((nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6, bias=False)), (9, 3), True),
        ((nn.Conv1d(3, 8, 1), nn.ReLU(), nn.Conv1d(8, 6, 1, bias=False)), (4, 3, 6), True),
        # without a batch: what the norm takes for channels are positions
        ((nn.Conv1d(3, 8, 1), nn.ReLU(), nn.Conv1d(8, 6, 1, bias=False)), (3, 6), False),
    ],
    ids=["linear", "convolution", "no batch"],
)
def test_only_a_norm_of_channels_takes_up_constants(layers, shape, moves):
    norm = nn.BatchNorm1d(6)
    case = case_of(nn.Sequential(*layers, norm), random(*shape))
    fitted, result = pruned(case, ratio=0.5, round_to=1)
    assert result.details["fitted"] == 2
    (own,) = (case.program.leaf(node) for node in case.program.find(nn.BatchNorm1d))
    (after,) = (fitted.leaf(node) for node in fitted.find(nn.BatchNorm1d))
    assert torch.equal(own.running_mean, after.running_mean) is not moves


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
