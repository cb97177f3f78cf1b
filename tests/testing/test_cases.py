import pytest
import torch
from torch import nn

from fxopt.errors import InputError
from fxopt.ir import PassResult
from fxopt.passes import Exact, Pass, PassInfo
from fxopt.testing import Case, make_case, reference_cases, run_pass, worst_error
from fxopt.testing.reference import MODELS, randomize


class Halves(Pass):
    """Halves every weight of linear layers."""

    info = PassInfo(name="halves", stage="prepare", fidelity=Exact())

    def run(self, program, context):
        for node in program.find(nn.Linear):
            program.leaf(node).weight.data.mul_(0.5)
        return PassResult(changed=True)


def linear_case():
    torch.manual_seed(0)
    return make_case("linear", nn.Linear(4, 3, bias=False), torch.randn(2, 4))


def test_a_case_has_two_batch_sizes_and_weights_of_its_own():
    model = nn.Linear(4, 3)
    case = make_case("linear", model, torch.randn(2, 4))
    assert [flat[0].shape[0] for flat in case.inputs] == [2, 3]
    for parameter in case.program.module.parameters():
        parameter.data.zero_()
    assert model.weight.abs().sum() > 0


def test_a_case_without_a_batch_is_refused():
    with pytest.raises(InputError, match="batch"):
        make_case("scalar", nn.ReLU(), torch.tensor(1.0))


def test_a_pass_is_run_on_a_clone_and_the_error_is_relative():
    case = linear_case()
    before = case.program.fingerprint()
    program, result = run_pass(Halves(), case)
    assert result.changed
    assert case.program.fingerprint() == before
    assert worst_error(case, program) == pytest.approx(0.5)
    assert worst_error(case, case.program) == 0.0


def test_the_context_offers_the_inputs_for_calibration():
    case = make_case("pair", Pair(), torch.ones(2, 3), scale=torch.ones(2, 1))
    batches = list(case.context().calibration)
    assert [[tuple(t.shape) for t in batch] for batch in batches] == [
        [(2, 3), (2, 1)],
        [(3, 3), (3, 1)],
    ]


class Pair(nn.Module):
    def forward(self, x, *, scale):
        return x * scale


def test_reference_models_are_captured_with_any_batch_and_run():
    for case in reference_cases():
        assert isinstance(case, Case)
        assert case.program.signature.batch, case.name
        case.program.verify()
        for outputs in case.outputs():
            assert all(torch.isfinite(t).all() and t.abs().sum() > 0 for t in outputs), case.name
    assert [case.name for case in reference_cases()] == list(MODELS)


def test_randomized_weights_are_neither_zero_nor_one():
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    for tensor in (*model.parameters(), model[1].running_mean, model[1].running_var):
        assert not ((tensor == 0) | (tensor == 1)).any()
