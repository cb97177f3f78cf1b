"""Trials of backends in a process of their own, which may crash, hang, or fill the terminal."""

from fxopt.pipeline.isolation.client import Isolation, shared_isolation
from fxopt.pipeline.isolation.parcel import Parcel
from fxopt.pipeline.isolation.records import ELSEWHERE, Outcome, RaceResult, TrialResult

__all__ = [
    "ELSEWHERE",
    "Isolation",
    "Outcome",
    "Parcel",
    "RaceResult",
    "TrialResult",
    "shared_isolation",
]
