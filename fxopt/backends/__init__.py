"""The contract of a backend, and the module that calls lowered code."""

from fxopt.backends.base import Backend, BackendInfo, Executable, Kernel, Lowering, Tensors
from fxopt.backends.export import export_program
from fxopt.backends.module import LoweredModule

__all__ = [
    "Backend",
    "BackendInfo",
    "Executable",
    "Kernel",
    "LoweredModule",
    "Lowering",
    "Tensors",
    "export_program",
]
