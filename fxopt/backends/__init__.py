"""The contract of a backend, and the module that calls lowered code."""

from fxopt.backends.base import Backend, BackendInfo, Executable, Kernel, Lowering, Tensors
from fxopt.backends.export import export_program
from fxopt.backends.giveback import give_back
from fxopt.backends.module import LoweredModule
from fxopt.backends.region import Region, cut_region, splice, whole_region
from fxopt.backends.scratch import find_files, keep_files

__all__ = [
    "Backend",
    "BackendInfo",
    "Executable",
    "Kernel",
    "LoweredModule",
    "Lowering",
    "Region",
    "Tensors",
    "cut_region",
    "export_program",
    "find_files",
    "give_back",
    "keep_files",
    "splice",
    "whole_region",
]
