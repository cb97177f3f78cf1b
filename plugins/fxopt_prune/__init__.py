"""Pruning: what matters least is removed for good."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.plugin import Pass, hookimpl
from fxopt_prune.prune import Prune

__all__ = ["Prune", "fxopt_passes"]


@hookimpl
def fxopt_passes() -> Sequence[type[Pass]]:
    """The pass of this plugin."""
    return [Prune]
