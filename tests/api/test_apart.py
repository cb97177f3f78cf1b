"""What is done to an optimized module afterwards leaves the user's model as it is."""

import pytest
import torch
from torch import nn

import fxopt
from fxopt.errors import InputError
from tests.api.conftest import Residual, vary


class Tied(nn.Module):
    """A batch norm, and a weight that two layers share."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.first, self.second = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(self.norm(x)).relu())


class Sizes(nn.Module):
    """Python that no tracer captures, around a part that meets two sizes."""

    def __init__(self):
        super().__init__()
        self.part = Tied()

    def forward(self, x):
        y = self.part(x)
        return y if float(x.sum()) < -1e6 else (y, self.part(x[..., ::2]))


def tensors(model):
    return [*model.named_parameters(), *model.named_buffers()]


@pytest.mark.parametrize("kind", [Tied, Sizes])
@pytest.mark.parametrize(
    "change",
    [
        lambda fast, x: fast.double(),
        lambda fast, x: fast.requires_grad_(False),
        lambda fast, x: fast.load_state_dict({n: t + 1 for n, t in fast.state_dict().items()}),
        lambda fast, x: fast.train()(x + 5),
    ],
    ids=["converted", "frozen", "loaded", "in training mode"],
)
def test_the_users_model_stays(kind, change, x):
    model = vary(kind())
    fast = fxopt.optimize(model, (x,), passes="cleanup", backends=["eager"])
    before = [(name, t, t.dtype, t.requires_grad, t.clone()) for name, t in tensors(model)]
    change(fast, x)
    for (name, tensor), (_, same, dtype, asks, value) in zip(tensors(model), before, strict=True):
        assert tensor is same, name
        assert (tensor.dtype, tensor.requires_grad) == (dtype, asks), name
        assert torch.equal(tensor, value), name


def test_tied_weights_stay_tied_and_take_no_memory_of_their_own(x):
    model = vary(Tied())
    fast = fxopt.optimize(model, (x,), passes="cleanup", backends=["eager"])
    ours = [t for name, t in fast.named_parameters(remove_duplicate=False) if "weight" in name]
    tied = [t for t in ours if t.dim() == 4]
    assert len(tied) == 2
    assert tied[0] is tied[1]
    assert tied[0].data_ptr() == model.first.weight.data_ptr()


def test_parts_are_converted_for_other_sizes_too(x):
    model = vary(Sizes())
    fast = fxopt.optimize(model, (x,), passes="fold_bn", backends=["eager"]).double()
    for actual, expected in zip(fast(x.double()), in_double(model)(x.double()), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def in_double(model):
    twin = type(model)()
    twin.load_state_dict(model.state_dict())
    return twin.double().eval()


def test_weights_loaded_into_parts_are_not_mixed_with_those_before(x):
    fast = fxopt.optimize(vary(Sizes()), (x,), passes="fold_bn", backends=["eager"])
    assert len(fast(x)) == 2
    fast.load_state_dict({name: 2 * tensor for name, tensor in fast.state_dict().items()})
    with pytest.raises(InputError, match="weights were loaded since"):
        fast(x)


def test_weights_of_parts_that_meet_one_size_can_be_loaded(x):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Residual()

        def forward(self, x):
            return self.body(x) if float(x.sum()) < 1e6 else x

    fast = fxopt.optimize(vary(Around()), (x,), passes="fold_bn", backends=["eager"])
    before = fast(x)
    fast.load_state_dict({n: 2 * t if "head" in n else t for n, t in fast.state_dict().items()})
    torch.testing.assert_close(fast(x), 2 * before)
