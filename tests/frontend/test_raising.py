"""Every raiser: the leaf's name, class and tensors, and what it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.frontend.support import assert_agrees, captured, functions, leaves, randn

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1, groups=2), (2, 4, 9), "Conv1d"),
    "conv2d": (lambda: nn.Conv2d(3, 6, 3, dilation=2, bias=False), (2, 3, 9, 8), "Conv2d"),
    "conv2d_same": (lambda: nn.Conv2d(3, 6, 3, padding="same"), (2, 3, 9, 8), "Conv2d"),
    "conv2d_reflect": (
        lambda: nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"),
        (2, 3, 9, 8),
        "Conv2d",
    ),
    "conv3d": (lambda: nn.Conv3d(3, 4, 2, stride=(1, 2, 1)), (2, 3, 4, 5, 6), "Conv3d"),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2, 1, 1), (2, 4, 9), "ConvTranspose1d"),
    "transposed2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        (2, 4, 5, 6),
        "ConvTranspose2d",
    ),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 2, 3, 3, 3), "ConvTranspose3d"),
    "linear": (lambda: nn.Linear(4, 5), (2, 3, 4), "Linear"),
    "linear_no_bias": (lambda: nn.Linear(4, 5, bias=False), (2, 4), "Linear"),
    "batch_norm1d": (lambda: nn.BatchNorm1d(4), (2, 4), "BatchNorm1d"),
    "batch_norm1d_3": (lambda: nn.BatchNorm1d(4, momentum=None), (2, 4, 5), "BatchNorm1d"),
    "batch_norm2d": (lambda: nn.BatchNorm2d(4, eps=0.1), (2, 4, 5, 6), "BatchNorm2d"),
    "batch_norm3d": (lambda: nn.BatchNorm3d(4, affine=False), (2, 4, 2, 3, 4), "BatchNorm3d"),
    "no_statistics": (
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        (2, 4, 5, 6),
        "BatchNorm2d",
    ),
    "layer_norm": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4), "LayerNorm"),
    "layer_norm_no_bias": (lambda: nn.LayerNorm(4, bias=False), (2, 3, 4), "LayerNorm"),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (2, 4, 5), "GroupNorm"),
    "instance_norm": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        (2, 4, 5, 6),
        "InstanceNorm2d",
    ),
    "rms_norm": (lambda: nn.RMSNorm(4), (2, 3, 4), "RMSNorm"),
    "prelu": (lambda: nn.PReLU(4), (2, 4, 3), "PReLU"),
    "lstm": (
        lambda: nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True, dropout=0.1),
        (2, 3, 4),
        "LSTM",
    ),
    "lstm_projected": (lambda: nn.LSTM(4, 5, proj_size=3, bias=False), (3, 2, 4), "LSTM"),
    "gru": (lambda: nn.GRU(4, 5, batch_first=True), (2, 3, 4), "GRU"),
    "rnn": (lambda: nn.RNN(4, 5, nonlinearity="relu", batch_first=True), (2, 3, 4), "RNN"),
    "lstm_cell": (lambda: nn.LSTMCell(4, 5), (2, 4), "LSTMCell"),
    "gru_cell": (lambda: nn.GRUCell(4, 5, bias=False), (2, 4), "GRUCell"),
    "rnn_cell": (lambda: nn.RNNCell(4, 5), (2, 4), "RNNCell"),
}


class Owner(nn.Module):
    """Holds one layer two levels deep."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(layer)

    def forward(self, *args: Any) -> Any:
        return self.stem[0](*args)


def randomize(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape) + 0.1)
    return model


@pytest.mark.parametrize("case", CASES)
def test_layer_is_raised(case: str) -> None:
    build, shape, kind = CASES[case]
    model = randomize(Owner(build()))
    program = captured(model, randn(*shape))
    assert leaves(program) == {"stem.0": kind}
    assert list(program.module.state_dict()) == list(model.state_dict())
    for name, parameter in model.named_parameters():
        assert program.module.get_parameter(name) is parameter
    for name, buffer in model.named_buffers():
        assert program.module.get_buffer(name) is buffer
    if case != "conv2d_reflect":  # the padding is a call of its own there
        assert repr(program.module.get_submodule("stem.0")) == repr(model.stem[0])


def test_embeddings_are_raised() -> None:
    ids = torch.randint(0, 7, (2, 3))
    program = captured(Owner(nn.Embedding(7, 4, padding_idx=1)), ids)
    assert leaves(program) == {"stem.0": "Embedding"}
    assert program.module.get_submodule("stem.0").padding_idx == 1
    program = captured(Owner(nn.EmbeddingBag(7, 4, mode="mean")), ids)
    assert leaves(program) == {"stem.0": "EmbeddingBag"}


def test_multihead_attention_becomes_linear_maps() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y, _ = self.attention(x, x, x, need_weights=False)
            return y  # type: ignore[no-any-return]

    program = captured(Net(), randn(2, 5, 8))
    assert leaves(program) == {"attention.in_proj": "Linear", "attention.out_proj": "Linear"}
    in_proj = program.module.get_submodule("attention.in_proj")
    assert in_proj.weight is attention.in_proj_weight
    assert "aten.scaled_dot_product_attention.default" in functions(program)


class Tied(nn.Module):
    """The output weights are the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(ids)
        return self.head(hidden) + hidden @ self.embedding.weight.T  # type: ignore[no-any-return]


def test_tied_weights_stay_tied() -> None:
    model = Tied()
    program = captured(model, torch.randint(0, 7, (2, 3)))
    assert leaves(program) == {"embedding": "Embedding", "head": "Linear"}
    module = program.module
    assert module.get_parameter("embedding.weight") is module.get_parameter("head.weight")
    fetched = [node for node in program.nodes if node.op == "get_attr"]
    assert [str(node.target) for node in fetched] == ["embedding_weight"]
    assert program.tensor(fetched[0]) is model.embedding.weight


class Shared(nn.Module):
    """One layer called twice, and its weight once more with another stride."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(self.conv(x))
        return F.conv2d(x, self.conv.weight, self.conv.bias, stride=2)


def test_shared_modules_stay_shared() -> None:
    program = captured(Shared(), randn(2, 3, 8, 8))
    assert leaves(program) == {"conv": "Conv2d", "conv_1": "Conv2d"}
    assert [n.op for n in program.nodes].count("call_module") == 3
    first, second = (program.module.get_submodule(name) for name in ("conv", "conv_1"))
    assert first.weight is second.weight
    assert first.bias is second.bias
    assert (first.stride, second.stride) == ((1, 1), (2, 2))


class Raw(nn.Module):
    """Parameters and buffers that belong to no standard layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))
        self.kernel = nn.Parameter(torch.rand(4, 4))
        self.register_buffer("offset", torch.rand(4))
        self.register_buffer("mask", torch.rand(4), persistent=False)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frozen(F.linear(x, self.kernel)) * self.scale + self.offset * self.mask
        return x + torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)


def test_other_tensors_keep_their_names() -> None:
    model = Raw()
    program = captured(model, randn(2, 4))
    assert leaves(program) == {"kernel_linear": "Linear", "frozen": "Linear"}
    assert program.module.get_parameter("scale") is model.scale
    assert not program.module.get_submodule("frozen").weight.requires_grad
    state = set(program.module.state_dict())
    wanted = {"scale", "kernel_linear.weight", "offset", "frozen.weight", "frozen.bias"}
    assert state == wanted
    assert dict(program.module.named_buffers())["mask"] is model.mask


def test_computed_weights_stay_functions() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    program = captured(model, randn(2, 4))
    assert leaves(program) == {}
    assert "aten.linear.default" in functions(program)
    assert "0.parametrizations.weight.original0" in program.module.state_dict()


def test_old_weight_and_spectral_norm() -> None:
    model = nn.Sequential(
        nn.utils.weight_norm(nn.Linear(4, 3)), nn.utils.spectral_norm(nn.Linear(3, 3))
    )
    model.double()(randn(2, 4))  # leaves a weight with a history, which deepcopy refuses
    program = captured(model, randn(2, 4))
    assert functions(program).count("aten.linear.default") == 2


def test_views_take_any_layout() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            flat = x.contiguous().view(x.size(0), -1)
            return flat, flat.contiguous().view_as(x)

    model, x = Net(), randn(2, 3, 4, 5)
    program = captured(model, x)
    assert_agrees(program, model, x.contiguous(memory_format=torch.channels_last))
    assert not [name for name in functions(program) if "view" in name]


def test_a_lone_layer() -> None:
    assert leaves(captured(nn.Linear(4, 3), randn(2, 4))) == {"fxopt_root": "Linear"}


def test_nothing_hangs_below_a_leaf() -> None:
    class Scaled(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.gain = nn.Parameter(torch.rand(4))
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.inner(x)) * self.gain

    program = captured(nn.Sequential(Scaled()), randn(2, 4))
    assert leaves(program) == {"0_inner": "Linear", "0": "Linear"}
    assert "0_gain" in program.module.state_dict()


def test_capture_draws_no_random_numbers() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), randn(2, 4)
    state = torch.get_rng_state()
    captured(model, x)
    assert torch.equal(torch.get_rng_state(), state)
