"""Training that makes a smaller network good again: by labels, or by what the original says."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.plugin import Pass, hookimpl
from fxopt_recover.distill import Distill
from fxopt_recover.finetune import Finetune

__all__ = ["Distill", "Finetune", "fxopt_passes"]


@hookimpl
def fxopt_passes() -> Sequence[type[Pass]]:
    """The passes of this plugin."""
    return [Finetune, Distill]
