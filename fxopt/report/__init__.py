"""The report: plain records of a run, and how they are shown."""

from fxopt.report.json import report_from_json, report_to_json, save_report
from fxopt.report.records import (
    CandidateRecord,
    PassRecord,
    RegionRecord,
    Report,
    Status,
)

__all__ = [
    "CandidateRecord",
    "PassRecord",
    "RegionRecord",
    "Report",
    "Status",
    "report_from_json",
    "report_to_json",
    "save_report",
]
