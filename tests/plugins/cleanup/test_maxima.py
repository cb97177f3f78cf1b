"""cleanup: activations in front of a maximum."""

import pytest
import torch
from torch.nn import functional as F

from fxopt.emit import emit
from tests.plugins.cleanup.support import F64, Calls, cleaned, operations

SPREAD = 3 * torch.randn(4, 3, 5, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
GLOBAL_MAXIMA = {
    "amax": lambda x: x.amax((2, 3)),
    "amax, keepdim": lambda x: x.amax(-1, keepdim=True),
    "max.dim": lambda x: x.max(3)[0],
    "torch.max": lambda x: torch.max(x, dim=-1, keepdim=True).values,
    "pool": lambda x: F.adaptive_max_pool2d(x, 1),
    "pool 1d": lambda x: F.adaptive_max_pool1d(x, 1),
    "pool 3d": lambda x: F.adaptive_max_pool3d(x, 1),
}
VALLEYS = {
    "gelu": F.gelu,
    "gelu, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "hardswish": F.hardswish,
}
RISING = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "logsigmoid": F.logsigmoid,
    "elu": F.elu,
    "elu, alpha": lambda x: F.elu(x, 0.3),
    "selu": F.selu,
    "celu": F.celu,
}


def moved(function, *inputs):
    """Whether an activation was moved; what is computed stays, but for the last bit or two."""
    program, result = cleaned(Calls(lambda self, x: function(x)), *inputs, tolerance=1e-15)
    return program, "maxim" in result.summary


@pytest.mark.parametrize("shift", [-6.0, -2.0, 0.0, 6.0])  # both sides of the valley
@pytest.mark.parametrize("name", sorted(VALLEYS))
def test_a_maximum_behind_a_valley_is_that_of_both_ends(name, shift):
    program, found = moved(lambda x: GLOBAL_MAXIMA["amax"](VALLEYS[name](x)), SPREAD + shift)
    assert found
    before = operations(program).index("maximum")
    assert sorted(operations(program)[:before])[:2] == ["amax", "amin"]


@pytest.mark.parametrize("name", sorted(RISING))
def test_a_maximum_behind_what_rises_needs_one_search(name):
    program, found = moved(lambda x: RISING[name](x).amax(3), SPREAD)
    assert found
    assert operations(program)[0] == "amax"
    assert len(operations(program)) == 2


@pytest.mark.parametrize("name", sorted(GLOBAL_MAXIMA))
def test_every_way_to_take_a_global_maximum_is_known(name):
    given = {"pool 1d": SPREAD[:, 0], "pool 3d": SPREAD.unsqueeze(2)}.get(name, SPREAD)
    _, found = moved(lambda x: GLOBAL_MAXIMA[name](F.gelu(x)), given)
    assert found


LEFT = {
    "it falls": lambda x: F.elu(x, -0.5).amax(3),
    "it jumps at its threshold": lambda x: F.softplus(x, 1.0, 1.0).amax(3),
    "it is cheap": lambda x: torch.relu(x).amax(3),
    "something else takes it": lambda x: (y := F.gelu(x), y.amax(3)),
    "where the maximum is counts": lambda x: F.gelu(x).max(3),
    "a few positions": lambda x: F.gelu(x).amax(2),
    "windows": lambda x: F.max_pool2d(F.gelu(x), 2),
    "more than one result": lambda x: F.adaptive_max_pool2d(F.gelu(x), (1, 2)),
    "a minimum": lambda x: F.gelu(x).amin(3),
    "over the batch": lambda x: F.gelu(x).amax(0) + x,
}


@pytest.mark.parametrize("name", sorted(LEFT))
def test_other_activations_stay_in_front(name):
    _, found = moved(LEFT[name], SPREAD)
    assert not found


def test_what_is_no_number_stays_none():
    x = SPREAD.clone()
    x[0, 0, 0, 0], x[1, 0, 0, 0], x[2, 0, 0, 0] = float("nan"), float("-inf"), float("inf")
    program, found = moved(lambda y: F.gelu(y).amax((2, 3)), SPREAD)
    assert found
    result = emit(program)(x)
    torch.testing.assert_close(result, F.gelu(x).amax((2, 3)), equal_nan=True)
    assert result[:2, 0].isnan().all()
