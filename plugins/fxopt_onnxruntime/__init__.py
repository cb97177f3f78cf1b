"""The ONNX Runtime backend: compiles a whole program for CPUs."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.plugin import Backend, hookimpl
from fxopt_onnxruntime.backend import ONNXRuntime

__all__ = ["ONNXRuntime", "fxopt_backends"]


@hookimpl
def fxopt_backends() -> Sequence[type[Backend]]:
    """The one backend of this plugin."""
    return [ONNXRuntime]
