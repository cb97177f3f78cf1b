"""Emission: a program as the module that the user gets."""

from fxopt.emit.optimized import (
    REGION,
    SOURCE,
    OptimizedModule,
    emit,
    emit_python,
    guarded,
    public_name,
    unshare,
)

__all__ = [
    "REGION",
    "SOURCE",
    "OptimizedModule",
    "emit",
    "emit_python",
    "guarded",
    "public_name",
    "unshare",
]
