"""Low rank: a layer becomes two or three thinner ones."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.plugin import Pass, hookimpl
from fxopt_low_rank.low_rank import LowRank

__all__ = ["LowRank", "fxopt_passes"]


@hookimpl
def fxopt_passes() -> Sequence[type[Pass]]:
    """The pass of this plugin."""
    return [LowRank]
