"""fxopt: a compiler for trained PyTorch models.

Everything is loaded on first use, so that ``import fxopt`` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxopt.api import capture, load, optimize, save
    from fxopt.emit import OptimizedModule
    from fxopt.errors import FxoptError
    from fxopt.report import Report
    from fxopt.training import Training

__version__ = "0.1.0.dev0"

__all__ = [
    "FxoptError",
    "OptimizedModule",
    "Report",
    "Training",
    "__version__",
    "capture",
    "load",
    "optimize",
    "save",
]

_HOMES = {
    "FxoptError": "fxopt.errors",
    "OptimizedModule": "fxopt.emit",
    "Report": "fxopt.report",
    "Training": "fxopt.training",
    "capture": "fxopt.api",
    "load": "fxopt.api",
    "optimize": "fxopt.api",
    "save": "fxopt.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fxopt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
