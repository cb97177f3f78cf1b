"""The contract of a pass: declaration, context, settings and their text form."""

from fxopt.passes.base import Context, Milder, Pass
from fxopt.passes.calibration import Calibration, batch_arguments
from fxopt.passes.info import STAGES, Exact, Lossy, PassInfo, Stage
from fxopt.passes.names import check_names, is_named
from fxopt.passes.placing import placed
from fxopt.passes.text import (
    default_settings,
    format_pass,
    format_passes,
    make_pass,
    parse_passes,
)

__all__ = [
    "STAGES",
    "Calibration",
    "Context",
    "Exact",
    "Lossy",
    "Milder",
    "Pass",
    "PassInfo",
    "Stage",
    "batch_arguments",
    "check_names",
    "default_settings",
    "format_pass",
    "format_passes",
    "is_named",
    "make_pass",
    "parse_passes",
    "placed",
]
