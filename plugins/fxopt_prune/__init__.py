"""Pruning: what matters least is removed for good, or becomes zero."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.plugin import Pass, hookimpl
from fxopt_prune.prune import Prune
from fxopt_prune.remove_zeros import RemoveZeros
from fxopt_prune.sparsify import Sparsify

__all__ = ["Prune", "RemoveZeros", "Sparsify", "fxopt_passes"]


@hookimpl
def fxopt_passes() -> Sequence[type[Pass]]:
    """The passes of this plugin."""
    return [Prune, Sparsify, RemoveZeros]
