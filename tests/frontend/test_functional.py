"""In-place code becomes functional and computes the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fxopt.errors import CaptureError
from fxopt.frontend import capture_program
from tests.frontend.support import captured, randn


def relu(x: Tensor) -> Tensor:
    y = x + 1
    F.relu(y, inplace=True)
    return y


def augmented(x: Tensor) -> Tensor:
    y = x * 2
    z = y
    y += x
    return y * z


def mask(x: Tensor) -> Tensor:
    m = x.new_zeros(6, 8)
    m[0:2, 1:4] = 1
    m[2:, 4:] = 2
    return x * m.view(-1)[:8]


def earlier_view(x: Tensor) -> Tensor:
    y = x + 1
    row, flat = y[:, 0], y.view(-1)
    y.mul_(3)
    return row.sum() + flat * 2


def through_view(x: Tensor) -> Tensor:
    y = x + 1
    y.t()[1:3].mul_(3)
    y.view(-1, 2, 4)[:, 1].add_(5)
    y.unsqueeze(1).squeeze(1).permute(1, 0)[0].zero_()
    return y


def view_of_a_view(x: Tensor) -> Tensor:
    y = x + 1
    upper = y[:, 2:]
    left = upper[:, :2]
    upper.mul_(2)
    left.sub_(1)
    return torch.cat([upper, left, y], 1)


def pieces(x: Tensor) -> Tensor:
    y = x + 1
    first, second = y.chunk(2, 1)
    second.add_(first)
    top, _ = y.split([1, x.shape[0] - 1], 0)
    top.fill_(7.0)
    y.unbind(1)[3].copy_(first[:, 0])
    return y


def indexed(x: Tensor) -> Tensor:
    y = x + 1
    y[:, [0, 2]] = 3
    y.masked_fill_(y > 2, 0.5).clamp_(0.2, 0.4)
    y[..., -1] = x[..., 0]
    return y


def dtypes(x: Tensor) -> Tensor:
    y = torch.zeros(8, dtype=torch.float32)
    y.add_(x[0])
    y[:2] = x[0, 2:4]
    m = x > 0
    m |= x < -1
    return y.to(x.dtype) + m


def reshape_that_copies(x: Tensor) -> Tensor:
    y = x + 1
    copied, viewed = y.t().reshape(-1), y.reshape(-1)
    y.neg_()
    return copied + viewed


def returned_alias(x: Tensor) -> Tensor:
    y = x + 1
    z = y.sigmoid_()
    z.mul_(2)
    return y + z


def diagonal(x: Tensor) -> Tensor:
    y = x[:2, :2] + 1
    y.diagonal().fill_(4)
    return y


PROGRAMS: list[Callable[[Tensor], Tensor]] = [
    relu,
    augmented,
    mask,
    earlier_view,
    through_view,
    view_of_a_view,
    pieces,
    indexed,
    dtypes,
    reshape_that_copies,
    returned_alias,
    diagonal,
]


class Net(nn.Module):
    """Any function as a model."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("function", PROGRAMS, ids=lambda f: f.__name__)
def test_same_values(function: Callable[[Tensor], Tensor]) -> None:
    captured(Net(function), randn(3, 8))


def test_gradients_through_writes() -> None:
    program = captured(Net(through_view), randn(3, 8))
    first, second = (randn(3, 8).requires_grad_() for _ in range(2))
    second.data.copy_(first.data)
    program.call(first).square().sum().backward()
    through_view(second).square().sum().backward()
    torch.testing.assert_close(first.grad, second.grad)


def test_a_written_input_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"mul_.* input 'x'"):
        capture_program(Net(lambda x: x.mul_(2)), (randn(3, 8),), {})


class Counter(nn.Module):
    """Counts its calls in a buffer, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x + self.calls


def test_a_written_buffer_is_refused_and_restored() -> None:
    model = Counter()
    with pytest.raises(CaptureError, match="calls"):
        capture_program(model, (randn(3, 8),), {})
    assert model.calls.item() == 0


def test_a_write_that_cannot_be_undone_is_refused() -> None:
    def unfolded(x: Tensor) -> Tensor:
        y = x + 1
        y.unfold(1, 2, 2)[:, 0].zero_()
        return y

    with pytest.raises(CaptureError, match="unfold"):
        capture_program(Net(unfolded), (randn(3, 8),), {})


VIEWS: list[Callable[[Tensor], Tensor]] = [
    lambda t: t[1:],
    lambda t: t[..., ::2],
    lambda t: t[0] if t.shape[0] > 1 and t.dim() > 1 else t,
    lambda t: t.transpose(0, -1),
    lambda t: t.unsqueeze(0),
    lambda t: t.flatten(),
    lambda t: t.contiguous(),
    lambda t: t.reshape(-1, 1),
]
WRITES: list[Callable[[Tensor], Tensor]] = [
    lambda t: t.mul_(2),
    lambda t: t.add_(1),
    lambda t: t.fill_(3.0),
    lambda t: t.relu_(),
    lambda t: t.copy_(t * t),
]


@settings(max_examples=15, deadline=None, derandomize=True, phases=[Phase.generate])
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 20)), min_size=2, max_size=8
    )
)
def test_random_views_and_writes(steps: list[tuple[bool, int, int]]) -> None:
    def function(x: Tensor) -> Tensor:
        tensors = [x + 1]
        for is_view, operation, operand in steps:
            target = tensors[operand % len(tensors)]
            if target.numel() < 2:
                continue
            table = VIEWS if is_view else WRITES
            tensors.append(table[operation % len(table)](target))
        return sum((t.sum() * (i + 1) for i, t in enumerate(tensors)), torch.zeros(()))

    program = capture_program(Net(function), (randn(4, 6),), {})
    program.verify()
    x = randn(4, 6)
    torch.testing.assert_close(program.call(x), function(x))
