"""Mathematics of passes on another device than the CPU: fake tensors tell where two meet."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fxopt_low_rank.factors import METHODS, _alternating, composed
from fxopt_low_rank.low_rank import _basis
from fxopt_prune.reconstruct import _Sums

F64 = torch.float64


def there(*shape):
    return torch.randn(*shape, dtype=F64, device="cuda")


@pytest.mark.parametrize("shifts", [False, True])
def test_what_is_left_is_fitted_there(shifts):
    with FakeTensorMode():
        sums = _Sums(shifts)
        sums.add(there(40, 6), there(40, 4))
        weight, constant = sums.solve(there(4, 6))
    assert weight.is_cuda
    assert constant.is_cuda


def test_factors_without_data_are_found_there():
    with FakeTensorMode():
        weight = there(8, 6, 3, 3)
        basis = _basis(weight, None)
        full = composed(METHODS["separable"](weight, 2, basis))
    assert all(each.is_cuda for each in (*basis, full))
    assert full.shape == weight.shape


def test_alternating_least_squares_stay_there():
    with FakeTensorMode():  # a rank above all sizes, so chance fills up
        factors = _alternating(there(8, 6, 3, 3), 10, steps=1)
    assert [tuple(each.shape) for each in factors] == [(8, 10), (6, 10), (3, 10), (3, 10)]
    assert all(each.is_cuda for each in factors)
