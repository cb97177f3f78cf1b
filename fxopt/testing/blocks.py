"""Building blocks of generated models: small modules whose forward holds what passes look for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """``x + body(x)``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class Concat(nn.Module):
    """Two branches side by side."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], dim=1)


class HalfTouched(nn.Module):
    """Cuts the channels into two chunks and works on one of them."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return torch.cat([second, self.body(first)], dim=1)


class Twice(nn.Module):
    """Calls the same layer twice, and after each call one of the norms, in turn."""

    def __init__(self, layer: nn.Module, *norms: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.norms = nn.ModuleList(norms)

    def forward(self, x: Tensor) -> Tensor:
        for index in range(2):
            x = self.layer(x)
            if len(self.norms):
                x = self.norms[index % len(self.norms)](x)
        return x


class Fork(nn.Module):
    """A layer whose result is used with and without the batch norm."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.norm(y) - y  # type: ignore[no-any-return]


class Shuffle(nn.Module):
    """Channel shuffle: view, transpose, contiguous, view."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class ChannelsLastNorm(nn.Module):
    """Layer norm over the channels of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Ramp(nn.Module):
    """Adds what is computed from a buffer and from constants alone."""

    steps: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("steps", torch.linspace(0.5, 1.5, channels))

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(self.steps.shape[0], dtype=x.dtype, device=x.device)
        return x + (self.steps.to(x.dtype) * count).view(1, -1, 1, 1)


class Repeats(nn.Module):
    """Computes the same twice, by functions and by a module."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.layer(x)
        second: Tensor = self.layer(x)
        return torch.sigmoid(first) * second + torch.relu(x).mean() + torch.relu(x)


# In an order that makes one a no-op only once another is gone.
NO_OPS: dict[str, Any] = {
    "contiguous": lambda x: x.contiguous(),
    "clone": lambda x: x.clone(),
    "detach": lambda x: x.detach(),
    "add 0": lambda x: x + 0,
    "mul 1": lambda x: x * 1.0,
    "cast": lambda x: x.to(x.dtype),
    "view": lambda x: x.view(x.shape),
    "reshape": lambda x: x.flatten(2).reshape(x.shape),
    "expand": lambda x: x.expand(x.shape),
    "slice": lambda x: x[:, :],
    "pad": lambda x: nn.functional.pad(x, (0, 0, 0, 0)),
    "cat": lambda x: torch.cat([x]),
    "transpose": lambda x: x.transpose(2, 3).transpose(2, 3),
    "permute": lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "strided": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


class NoOps(nn.Module):
    """Operations that change nothing, by name."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = NO_OPS[name](x)
        return x

    def extra_repr(self) -> str:
        return ", ".join(self.names)


class Outputs(nn.Module):
    """A trunk and a head; optionally returns what the head was given too."""

    def __init__(self, trunk: nn.Module, head: nn.Module, both: bool) -> None:
        super().__init__()
        self.trunk, self.head, self.both = trunk, head, both

    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x)
        return (self.head(x), x) if self.both else self.head(x)
