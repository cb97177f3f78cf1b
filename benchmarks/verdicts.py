"""fxopt against the best rival, and whether the limits are kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rows import OWN, PRECISIONS, RIVAL, TORCH_ONLY, Results, Row

ERROR_TOLERANCE = 0.02
"""A rival whose error is up to 2 % larger than fxopt's still counts as no less accurate."""

FAR_BEHIND = 3.0
"""Who takes so many times the latency of the fastest rival is nobody's choice, however accurate."""

LIMITS: dict[tuple[str, str], tuple[float | None, float]] = {
    (OWN, "fp32"): (1.00, 1.03),
    (OWN, "bf16"): (1.00, 1.03),
    (OWN, "int8"): (0.95, 1.03),
    (TORCH_ONLY, "fp32"): (None, 1.03),
    (TORCH_ONLY, "bf16"): (None, 1.03),
    (TORCH_ONLY, "int8"): (0.90, 1.03),
}
"""By kind and precision: how large the geometric mean of the ratios may be, and any one of them."""


@dataclass(frozen=True)
class Verdict:
    """fxopt on one model in one precision.

    Attributes:
        own: fxopt's row.
        best: The fastest rival of the same precision; for int8, of those no less accurate.
        lenient: Whether no int8 rival is as accurate: ``best`` is then the fastest of the most
            accurate ones that are not far behind, so that what falls back to float is judged too.
        any_precision: The fastest rival of any precision that is no less accurate.
        any_error: The fastest rival of the same precision, however large its error.
    """

    own: Row
    best: Row | None
    any_precision: Row | None
    any_error: Row | None
    lenient: bool = False

    @property
    def ratio(self) -> float | None:
        return self.against(self.best)

    def against(self, rival: Row | None) -> float | None:
        """fxopt's latency over the rival's: of their duel, if they had one."""
        if rival is None:
            return None
        return self.own.duels.get(rival.candidate, self.own.milliseconds / rival.milliseconds)


@dataclass(frozen=True)
class Summary:
    """All verdicts of a kind and precision beside the limits.

    Attributes:
        kind: ``fxopt`` or ``fxopt torch-only``.
        precision: ``fp32``, ``bf16`` or ``int8``.
        verdicts: Those with a rival to be judged by, worst first.
        unjudged: Models on which fxopt failed, or all rivals of the precision did.
    """

    kind: str
    precision: str
    verdicts: tuple[Verdict, ...]
    unjudged: tuple[str, ...]

    @property
    def ratios(self) -> list[float]:
        return [verdict.ratio for verdict in self.verdicts if verdict.ratio is not None]

    @property
    def mean(self) -> float:
        """Geometric mean of the ratios."""
        return geometric_mean(self.ratios)

    @property
    def mean_any_error(self) -> float:
        """Geometric mean of the ratios to the fastest rivals, however large their errors."""
        return geometric_mean([v.against(v.any_error) or 0.0 for v in self.verdicts])

    @property
    def kept(self) -> bool:
        """Whether both limits are kept, and nothing of fxopt's failed."""
        if not self.verdicts:
            return False
        mean, worst = LIMITS[self.kind, self.precision]
        within = max(self.ratios) <= worst and (mean is None or self.mean <= mean)
        return within and not any(name.endswith("failed") for name in self.unjudged)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def verdict(own: Row, rows: Iterable[Row]) -> Verdict:
    """Compares one of fxopt's rows with the rivals in the same run."""
    rivals = [row for row in rows if row.kind == RIVAL and row.measured]
    if own.kind == TORCH_ONLY:
        rivals = [row for row in rivals if row.torch]
    same = [row for row in rivals if row.precision == own.precision]
    accurate = [row for row in rivals if row.error <= own.error * (1 + ERROR_TOLERANCE)]
    # fp32 and bf16 have one way to round each; only int8 can buy speed with its choice of errors.
    counted = [row for row in same if own.precision != "int8" or row in accurate]
    others = [row for row in accurate if row not in counted]
    any_precision = _fastest([*counted, *others])
    lenient = not counted and bool(same)
    best = _fastest(_most_accurate(same) if lenient else counted)
    return Verdict(own, best, any_precision, _fastest(same), lenient)


def _most_accurate(rows: Sequence[Row]) -> list[Row]:
    fastest = min(row.milliseconds for row in rows)
    near = [row for row in rows if row.milliseconds <= FAR_BEHIND * fastest]
    least = min(row.error for row in near)
    return [row for row in near if row.error <= least * (1 + ERROR_TOLERANCE)]


def summaries(results: Results) -> list[Summary]:
    """One for each kind and precision of which there is a row."""
    found = []
    for kind in (OWN, TORCH_ONLY):
        for precision in PRECISIONS:
            own = [r for r in results.rows if (r.kind, r.precision) == (kind, precision)]
            if own:
                found.append(_summary(kind, precision, own, results))
    return found


def _summary(kind: str, precision: str, own: Sequence[Row], results: Results) -> Summary:
    measured = [verdict(r, results.beside(r)) for r in own if r.measured]
    judged = [v for v in measured if v.ratio is not None]
    judged.sort(key=lambda v: -(v.ratio or 0.0))
    failed = [f"{_case(r)} failed" for r in own if not r.measured]
    alone = [f"{_case(v.own)} without a rival" for v in measured if v.ratio is None]
    return Summary(kind, precision, tuple(judged), (*failed, *alone))


def _case(row: Row) -> str:
    return f"{row.model}, batch {row.batch}"


def _fastest(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: row.milliseconds, default=None)
