"""A captured model trains as the original does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.ops import StochasticDepth

from tests.frontend.support import captured, leaves, randn


class Net(nn.Module):
    """Every kind of layer that acts differently in training."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4, momentum=None)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.depth = StochasticDepth(0.5, "row")

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        y = self.drop(y + 1)
        y = F.dropout(y, 0.25, self.training)
        y = F.dropout2d(y, 0.25, self.training)
        return self.depth(self.drop(y)) + y  # type: ignore[no-any-return]


def test_training_modules_are_kept() -> None:
    program = captured(Net(), randn(2, 3, 5, 5))
    kinds = {
        "conv": "Conv2d",
        "bn": "BatchNorm2d",
        "drop": "Dropout",
        "dropout": "Dropout",
        "dropout_1": "Dropout2d",
        "depth": "StochasticDepth",
    }
    assert leaves(program) == kinds
    assert not any(module.training for module in program.module.modules())
    assert not getattr(program.leaf(next(program.find(nn.Dropout))), "inplace", False)


def test_train_and_eval_keep_their_meaning() -> None:
    model, x = Net(), randn(4, 3, 5, 5)
    twin = copy.deepcopy(model).double()
    program = captured(twin, x)
    model.double().train()
    program.module.train()
    for _ in range(2):
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        torch.testing.assert_close(program.call(x), expected)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(program.module.get_buffer(name), buffer)
    program.module.eval()
    model.eval()
    torch.testing.assert_close(program.call(x), model(x))


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_dropout(need_weights: bool) -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=need_weights)[0]  # type: ignore[no-any-return]

    model, x = Attend(), randn(2, 5, 8)
    program = captured(model, x)
    assert not torch.equal(program.module.train()(x)[0], program.module(x)[0])
    torch.manual_seed(3)
    expected = model.train()(x)
    torch.manual_seed(3)
    torch.testing.assert_close(program.call(x), expected)


def test_attention_dropout_of_the_zoos() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 24)
            self.attn_drop, self.proj_drop = nn.Dropout(0.5), nn.Dropout(0.0)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            p = self.attn_drop.p if self.training else 0.0
            return self.proj_drop(F.scaled_dot_product_attention(q, k, v, dropout_p=p))

    model, x = nn.Sequential(Attend()), randn(2, 5, 8)
    program = captured(model, x)
    assert leaves(program)["0.attention"] == "ScaledDotProductAttention"
    program.module.train()
    torch.manual_seed(3)
    expected = model.train()(x)
    torch.manual_seed(3)
    torch.testing.assert_close(program.call(x), expected)


def test_one_step_of_sgd_is_the_same() -> None:
    model, x = resnet18(num_classes=10).double(), randn(4, 3, 64, 64)
    labels = torch.tensor([1, 2, 3, 4])
    twin = copy.deepcopy(model)
    program = captured(twin, x)
    losses = [_step(m.train(), x, labels) for m in (model, program.module)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)
    ours, theirs = program.module.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-9, atol=1e-9)
    for name, parameter in model.named_parameters():
        gradient = program.module.get_parameter(name).grad
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-9)


def _step(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    output = model(x)
    loss = F.cross_entropy(output[0] if isinstance(output, tuple) else output, labels)
    loss.backward()
    optimizer.step()
    return loss.detach()
