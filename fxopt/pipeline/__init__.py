"""The pipeline: plans passes, runs them, holds each to its word, and lowers what they made."""

from fxopt.pipeline.bisect import BisectResult, bisect
from fxopt.pipeline.compare import Comparison, compare
from fxopt.pipeline.instruments import (
    Dumps,
    Instrument,
    Progress,
    SizeLimit,
    TimeLimit,
    Timing,
    Verification,
    instruments_for,
)
from fxopt.pipeline.lowering import (
    LOSSY,
    UNROUNDED,
    Lowered,
    LoweringJob,
    Version,
    exact_version,
    lossy_version,
    lower,
    reduced_version,
    unrounded_version,
)
from fxopt.pipeline.manager import Outcome, PassManager
from fxopt.pipeline.planner import Plan, Step, plan
from fxopt.pipeline.precision import full_precision

__all__ = [
    "LOSSY",
    "UNROUNDED",
    "BisectResult",
    "Comparison",
    "Dumps",
    "Instrument",
    "Lowered",
    "LoweringJob",
    "Outcome",
    "PassManager",
    "Plan",
    "Progress",
    "SizeLimit",
    "Step",
    "TimeLimit",
    "Timing",
    "Verification",
    "Version",
    "bisect",
    "compare",
    "exact_version",
    "full_precision",
    "instruments_for",
    "lossy_version",
    "lower",
    "plan",
    "reduced_version",
    "unrounded_version",
]
