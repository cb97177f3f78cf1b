"""Trials of backends in a process of their own, which may crash, hang, or fill the terminal."""

from fxopt.pipeline.isolation.client import Isolation, shared_isolation
from fxopt.pipeline.isolation.parcel import Parcel
from fxopt.pipeline.isolation.records import ELSEWHERE, Outcome, TrialResult, TurnResult

__all__ = [
    "ELSEWHERE",
    "Isolation",
    "Outcome",
    "Parcel",
    "TrialResult",
    "TurnResult",
    "shared_isolation",
]
