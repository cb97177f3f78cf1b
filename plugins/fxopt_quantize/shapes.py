"""Shape inference for torch's fake-quantize operators, which torch 2.11 to 2.14 lack.

Without it they cannot be traced at symbolic sizes.
"""

from __future__ import annotations

import torch

_NAMES = (
    "fake_quantize_per_tensor_affine_cachemask",
    "fake_quantize_per_channel_affine_cachemask",
)
_LIBRARY = torch.library.Library("aten", "IMPL")  # registrations last as long as it does


def _like_input(x: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """The rounded values, and the mask of those that were not clipped."""
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


def register() -> None:
    """Adds what is missing; where torch has it by now, torch's own stays."""
    for name in _NAMES:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            _LIBRARY.impl(name, _like_input, "Meta")
