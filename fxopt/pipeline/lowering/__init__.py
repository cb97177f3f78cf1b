"""Lowering: versions of a program, candidates for running them, and the race between those."""

from fxopt.pipeline.lowering.job import LoweringJob
from fxopt.pipeline.lowering.lower import Lowered, lower
from fxopt.pipeline.lowering.version import (
    LOSSY,
    UNROUNDED,
    Version,
    exact_version,
    lossy_version,
    reduced_version,
    unrounded_version,
)

__all__ = [
    "LOSSY",
    "UNROUNDED",
    "Lowered",
    "LoweringJob",
    "Version",
    "exact_version",
    "lossy_version",
    "lower",
    "reduced_version",
    "unrounded_version",
]
