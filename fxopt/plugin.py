"""The public face for plugin authors: everything that a pass or a backend needs.

A first-party plugin imports this module, torch and itself, and nothing else of fxopt.
"""

from fxopt.analysis import Analysis, Fact, windows
from fxopt.backends import (
    Backend,
    BackendInfo,
    Executable,
    Kernel,
    Lowering,
    Tensors,
    export_program,
    find_files,
    give_back,
    keep_files,
)
from fxopt.cost import Roofline, Target, example_size, multiply_adds
from fxopt.errors import BackendError, CalibrationError, PassError
from fxopt.hookspecs import hookimpl
from fxopt.ir import (
    Edit,
    LeafModule,
    PassResult,
    Program,
    ScaledDotProductAttention,
    is_aten,
    is_random,
    paged,
    recurrent_layers_not_walked,
    size_hint,
)
from fxopt.passes import (
    Calibration,
    Context,
    Exact,
    Lossy,
    Milder,
    Pass,
    PassInfo,
    check_names,
    is_named,
)
from fxopt.training import Criterion, Trained, Trainer, zero_keeper

__all__ = [
    "Analysis",
    "Backend",
    "BackendError",
    "BackendInfo",
    "Calibration",
    "CalibrationError",
    "Context",
    "Criterion",
    "Edit",
    "Exact",
    "Executable",
    "Fact",
    "Kernel",
    "LeafModule",
    "Lossy",
    "Lowering",
    "Milder",
    "Pass",
    "PassError",
    "PassInfo",
    "PassResult",
    "Program",
    "Roofline",
    "ScaledDotProductAttention",
    "Target",
    "Tensors",
    "Trained",
    "Trainer",
    "check_names",
    "example_size",
    "export_program",
    "find_files",
    "give_back",
    "hookimpl",
    "is_aten",
    "is_named",
    "is_random",
    "keep_files",
    "multiply_adds",
    "paged",
    "recurrent_layers_not_walked",
    "size_hint",
    "windows",
    "zero_keeper",
]
