"""The report: plain records of a run, and how they are shown."""

from fxopt.report.records import (
    CandidateRecord,
    PassRecord,
    RegionRecord,
    Report,
    Status,
)

__all__ = ["CandidateRecord", "PassRecord", "RegionRecord", "Report", "Status"]
