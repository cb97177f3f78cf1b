"""Reference models of the conformance kit: small ones that between them hold what passes meet."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fxopt.testing.cases import Case, make_case

_BATCH = 2


class ResidualCNN(nn.Module):
    """Convolutions with batch norms, a residual, pooling, dropout and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.body(x))
        x = nn.functional.adaptive_avg_pool2d(x, 1)
        y: Tensor = self.head(self.dropout(torch.flatten(x, 1)))
        return y


class Branches(nn.Module):
    """Grouped, depthwise and transposed convolutions, concatenation, chunks, channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8))
        self.depthwise = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4))
        self.up = nn.Sequential(nn.ConvTranspose2d(12, 6, 2, 2, groups=2), nn.BatchNorm2d(6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([self.grouped(x), self.depthwise(x)], dim=1)
        batch, channels, height, width = both.shape
        shuffled = both.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        up = self.up(shuffled.view(batch, channels, height, width))
        first, second = up.chunk(2, dim=1)
        return nn.functional.hardswish(first), torch.sigmoid(second)


class SharedMLP(nn.Module):
    """Linear layers, one of them called twice, batch norms on rows, layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.GELU())
        self.shared = nn.Linear(8, 8)
        self.norms = nn.ModuleList([nn.BatchNorm1d(8), nn.BatchNorm1d(8)])
        self.last = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.first(x)
        for norm in self.norms:
            hidden = norm(self.shared(hidden))
        return {"hidden": hidden, "logits": self.last(hidden)}


class TiedAttention(nn.Module):
    """Token and position embeddings, attention, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, 8)
        self.positions = nn.Embedding(5, 8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        x = self.tokens(ids) + self.positions(torch.arange(length))
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
        y, _ = self.attention(x, x, x, attn_mask=mask, need_weights=False)
        logits: Tensor = self.head(self.norm(x + y))
        return logits


class Signals(nn.Module):
    """One-dimensional convolutions, a second input by keyword, buffers and constants."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.conv = nn.Conv1d(4, 6, 3)
        self.register_buffer("window", torch.hann_window(10))

    def forward(self, x: Tensor, *, gain: Tensor) -> Tensor:
        window = self.window / self.window.sum()
        y = self.conv(self.norm(x * window)) * 1.0
        ramp = torch.arange(8, dtype=x.dtype) / 8
        return torch.tanh(y + 0.0) * gain[:, None, None] + ramp


class Volumes(nn.Module):
    """Three-dimensional convolutions, a batch norm without affine, and one on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 4, (1, 3, 3), padding=(0, 1, 1), padding_mode="replicate")
        self.norm = nn.BatchNorm3d(4, affine=False)
        self.alone = nn.BatchNorm3d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x)))
        return torch.mean(torch.relu(self.alone(y)) + self.conv(x), dim=(2, 3, 4))


Factory = Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]


def _image(*sizes: int) -> Tensor:
    return torch.randn(_BATCH, *sizes, dtype=torch.float64)


MODELS: dict[str, Factory] = {
    "residual": lambda: (ResidualCNN(), (_image(3, 8, 8),), {}),
    "branches": lambda: (Branches(), (_image(4, 4, 4),), {}),
    "mlp": lambda: (SharedMLP(), (_image(6),), {}),
    "attention": lambda: (TiedAttention(), (torch.randint(16, (_BATCH, 5)),), {}),
    "signals": lambda: (Signals(), (_image(4, 10),), {"gain": _image()}),
    "volumes": lambda: (Volumes(), (_image(2, 3, 4, 4),), {}),
}


def randomize(model: nn.Module) -> nn.Module:
    """Gives every parameter and statistic a random value, so that nothing is 0 or 1 by default."""
    for module in model.modules():
        for tensor in module.parameters(recurse=False):
            nn.init.normal_(tensor, std=0.5)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return model


@cache
def reference_case(name: str) -> Case:
    """The reference model of that name, in float64, captured once a process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, args, kwargs = MODELS[name]()
        return make_case(name, randomize(model.double()).eval(), *args, **kwargs)


def reference_cases() -> list[Case]:
    """All reference models."""
    return [reference_case(name) for name in MODELS]
