"""Blocks of autocast become casts that can be seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxopt.frontend import capture_program
from tests.frontend.support import functions

LOW = torch.bfloat16

Body = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv1d(4, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.layer, self.layer_norm = nn.Linear(8, 8), nn.LayerNorm(8)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", LOW):
            y = self.body(self, x)
        return self.layer(y.float() + x)  # type: ignore[no-any-return]


def _nested(net: Net, x: Tensor) -> Tensor:
    y = net.layer(x)
    with torch.autocast("cpu", enabled=False):
        y = net.layer_norm(net.layer(y.float()))
    return net.layer(y)  # type: ignore[no-any-return]


def _frozen(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.layer(x)  # type: ignore[no-any-return]


def _attention(net: Net, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(net.layer(x), x, x)


def _scores(net: Net, x: Tensor) -> Tensor:
    return (net.layer(x) @ x.mT).softmax(-1) @ x


def _of_two_dtypes(net: Net, x: Tensor) -> Tensor:
    return torch.cat([net.layer(x), x], 1).mean(1, keepdim=True)


BODIES: dict[str, Body] = {
    "layers": lambda net, x: net.layer_norm(net.layer(net.layer(x))),
    "convolution and batch norm": lambda net, x: F.gelu(net.norm(net.conv(x))),
    "attention": _attention,
    "matrix products": _scores,
    "a concatenation": _of_two_dtypes,
    "without gradients": _frozen,
    "not enabled within": _nested,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_same_bits_as_the_model(body: Body) -> None:
    model, x = Net(body).eval(), torch.randn(2, 4, 8)
    program = capture_program(model, (x,), {})
    program.verify()
    assert "aten.to.dtype" in functions(program)
    for sample in (x, torch.randn(3, 4, 8)):
        torch.testing.assert_close(program.call(sample), model(sample), rtol=0, atol=0)


def test_layers_outside_stay_layers_and_in_float() -> None:
    program = capture_program(Net(BODIES["layers"]).eval(), (torch.randn(2, 4, 8),), {})
    (last,) = [node for node in program.nodes if node.target == "layer"]
    assert last.meta["val"].dtype == torch.float32


def test_weights_get_gradients_through_casts() -> None:
    model = Net(BODIES["layers"]).eval()
    capture_program(model, (torch.randn(2, 4, 8),), {}).call(torch.randn(2, 4, 8)).sum().backward()
    assert model.layer.weight.grad is not None
    assert model.layer.weight.grad.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_autocast_of_another_device_casts_nothing() -> None:
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cuda", torch.float16):
                return self.layer(x)  # type: ignore[no-any-return]

    program = capture_program(Elsewhere().eval(), (torch.randn(2, 8),), {})
    assert functions(program) == []
