"""The OpenVINO backend: compiles a whole program with Intel's runtime for CPUs."""

from __future__ import annotations

from collections.abc import Sequence

from fxopt.plugin import Backend, hookimpl
from fxopt_openvino.backend import OpenVINO

__all__ = ["OpenVINO", "fxopt_backends"]


@hookimpl
def fxopt_backends() -> Sequence[type[Backend]]:
    """The one backend of this plugin."""
    return [OpenVINO]
