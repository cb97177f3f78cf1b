"""The int8 operators of torch: private ones, so each is looked up before it is used."""

from __future__ import annotations

from typing import Any

import torch

_NEEDED = (
    ("qconv_prepack", "default"),
    ("qconv_pointwise", "default"),
    ("qconv2d_pointwise", "binary"),
    ("qlinear_prepack", "default"),
    ("qlinear_pointwise", "default"),
    ("qlinear_pointwise", "binary"),
)


def missing_operators() -> str | None:
    """Which operators this build of torch lacks; None when all are there."""
    lacking = [name for name in _NEEDED if find_operator(*name) is None]
    if not lacking:
        return None
    names = ", ".join(f"onednn.{name}.{overload}" for name, overload in lacking)
    return f"this build of torch {torch.__version__} lacks {names}; it may be without oneDNN"


def find_operator(name: str, overload: str) -> Any:
    """An operator of oneDNN; None when this build of torch does not have it."""
    return getattr(getattr(torch.ops.onednn, name, None), overload, None)
