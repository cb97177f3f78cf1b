"""Substitution: an activation function by one that is cheaper."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.plugin import Pass, hookimpl
from fxopt_substitute.substitute import Substitute

__all__ = ["Substitute", "fxopt_passes"]


@hookimpl
def fxopt_passes() -> Sequence[type[Pass]]:
    """The pass of this plugin."""
    return [Substitute]
