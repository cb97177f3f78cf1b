"""Warns of a model that came out as another one, where no limit was set that would tell."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from fxopt.api.request import Request
from fxopt.report import PassRecord, Report
from fxopt.report import format as show

# In benchmarks/results, what is quantized drifts by 0.3 at most, with weights of 4 bits, too; nets
# of lower rank that drift by a half have lost a quarter of their score or more.
_FAR = 0.5

# Labels, or another teacher, lead away from the original; but not as far as zeros would be.
_ZEROS = 1.0


def with_warning(report: Report, request: Request) -> Report:
    """Warns the user where outputs have little to do with the original's any more.

    Whoever set a limit got what it allows, and is not warned.

    Args:
        report: Of the optimized model.
        request: What was asked for.

    Returns:
        The report, with a note that says the same.
    """
    lossy = [each for each in report.passes if each.status == "applied" and not each.exact]
    limited = request.max_drift is not None or request.max_drop is not None
    if limited or not lossy or report.drift is None or report.drift < _allowed(request):
        return report
    note = (
        f"outputs have little to do with the original's: they drift by "
        f"{show.relative(report.drift)}, most of it by {_worst(lossy).name}; "
        "max_drift=, or evaluate= with max_drop=, rolls back what costs more than you allow"
    )
    warnings.warn(note, stacklevel=3)  # the line that calls fxopt.optimize
    return replace(report, notes=(note, *report.notes))


def _allowed(request: Request) -> float:
    if request.training is None:
        return _FAR
    settings = request.training.settings
    return _FAR if settings.loss is None and settings.teacher is None else _ZEROS


def _worst(records: Sequence[PassRecord]) -> PassRecord:
    """The pass by which the drift rose most."""
    drifts = [record.drift or 0.0 for record in records]
    rises = [after - before for before, after in pairwise([0.0, *drifts])]
    return records[rises.index(max(rises))]
