"""Numbers and lines of the report as people read them."""

from __future__ import annotations

from fxopt.report.records import CandidateRecord, PassRecord, RegionRecord

NONE = "-"
_REASONS = 3  # why operations stay outside of all regions: more are left to report.json


def milliseconds(value: float | None) -> str:
    """``12.6``: three significant digits, but never more than needed; ``-`` when unknown."""
    if value is None:
        return NONE
    digits = 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


def megabytes(size: int) -> str:
    """A size in units of a million or a thousand bytes.

    >>> megabytes(97_800_000), megabytes(12_345)
    ('97.8 MB', '12.3 kB')
    """
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def relative(error: float | None) -> str:
    """A relative error in percent, or as a power of ten where percents would only show zeros.

    >>> relative(0.0182), relative(3.1e-7), relative(None)
    ('1.8 %', '3e-07', '-')
    """
    if error is None:
        return NONE
    if error == 0:
        return "0"
    if error < 5e-4:
        return f"{error:.0e}"
    return f"{error * 100:.2g} %" if error < 0.995 else f"{error * 100:.0f} %"


def ratio(before: float, after: float) -> str:
    """How many times less it is now; empty where there is nothing to divide by.

    >>> ratio(58.3, 12.6), ratio(1.0, 1.05)
    ('4.6x', '0.95x')
    """
    if not after:
        return ""
    times = before / after
    return f"{times:.0f}x" if times >= 9.95 else f"{times:.2f}x" if times < 1.5 else f"{times:.1f}x"


def nodes(record: PassRecord) -> str:
    """``176 -> 174``, one number where nothing changed, ``-`` where the pass did not run."""
    if record.status in ("skipped", "rolled back"):
        return NONE
    if record.nodes_before == record.nodes_after:
        return str(record.nodes_after)
    return f"{record.nodes_before} -> {record.nodes_after}"


def change(before: float | None, after: float | None) -> str:
    """By how much it is less or more; ``-`` where it is the same or unknown.

    >>> change(200, 98), change(100, 100), change(None, None), change(100, 108)
    ('-51 %', '-', '-', '+8 %')
    """
    if not before or after is None or before == after:
        return NONE
    return f"{100 * (after / before - 1):+.0f} %"


def pass_drift(record: PassRecord) -> str:
    """``exact`` where the pass kept that promise, the drift of a lossy one, ``-`` otherwise."""
    if record.status != "applied":
        return NONE
    return "exact" if record.exact else relative(record.drift)


def outcome(record: PassRecord) -> str:
    """What the pass did, or why it did not."""
    if record.status in ("skipped", "rolled back"):
        return f"{record.status}: {record.reason}"
    refused = f", {len(record.refused)} refused" if record.refused else ""
    milder = record.details.get("milder")
    why = f"; milder settings, since otherwise {milder}" if milder else ""
    return (record.summary or "nothing to do") + refused + why


def costs(record: PassRecord) -> tuple[str, ...]:
    """What a pass that was over a limit costs and brings in single layers."""
    return tuple(
        f"{layer}: {relative(error)} of the error, {relative(gain)} of the gain"
        for layer, (error, gain) in record.details.get("costs", {}).items()
    )


def precisions(candidate: CandidateRecord) -> str:
    """``54 int8, 3 f32``, most frequent first."""
    ranked = sorted(candidate.precisions.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {name}" for name, count in ranked) or "not known"


def candidate(region: RegionRecord, record: CandidateRecord) -> str:
    """The backend, with the version that it ran where several versions were tried."""
    versions = {record.version, *(other.version for other in region.candidates)}
    return f"{record.backend} ({record.version})" if len(versions) > 1 else record.backend


def placement(record: CandidateRecord) -> str:
    """In how many regions it runs, and what stays outside and why; empty where one takes all.

    >>> placement(CandidateRecord("openvino", placed=("a", "b"), outside=("aten.rand is random",)))
    'openvino (2 regions, 1 operation outside: aten.rand is random)'
    """
    if not record.placed:
        return ""
    parts = _counted(len(record.placed), "region")
    if record.outside:
        reasons = "; ".join(shorten(tuple(dict.fromkeys(record.outside)), _REASONS))
        parts += f", {_counted(len(record.outside), 'operation')} outside: {reasons}"
    return f"{record.backend} ({parts})"


def slower(region: RegionRecord) -> str:
    """What is out for being slower: ``inductor 15.1; not tried: onednn``; empty for nothing."""
    out = [other for other in region.candidates if other.slower]
    measured = [other for other in out if other.milliseconds is not None]
    times = [f"{candidate(region, c)} {milliseconds(c.milliseconds)}" for c in measured]
    untried = [candidate(region, other) for other in out if other.milliseconds is None]
    parts = [", ".join(times), f"not tried: {', '.join(untried)}" if untried else ""]
    return "; ".join(filter(None, parts))


def next_best(region: RegionRecord) -> str:
    """The fastest candidate that lost, such as ``inductor 15.1``."""
    rivals = [
        other
        for other in region.candidates
        if other != region.chosen and other.milliseconds is not None and not other.reason
    ]
    if not rivals:
        return NONE
    best = min(rivals, key=lambda other: other.milliseconds or 0.0)
    return f"{candidate(region, best)} {milliseconds(best.milliseconds)}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shorten(lines: tuple[str, ...], limit: int) -> list[str]:
    """The first lines, and how many more the machine-readable report has."""
    if len(lines) <= limit + 1:  # one more line is no longer than the line that would replace it
        return list(lines)
    return [*lines[:limit], f"and {len(lines) - limit} more (report.json has all)"]
