"""Writes the Markdown page of the latency study from its results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from compile_time import compile_times
from duel import CLOSE
from machine import letter, machine_text
from peak import shares
from rows import PRECISIONS, Results, Row
from tabulate import tabulate
from verdicts import (
    ERROR_TOLERANCE,
    FAR_BEHIND,
    LIMITS,
    Summary,
    Verdict,
    summaries,
)

INTRODUCTION = f"""\
Weights are random, batch norm statistics too; every int8 tool calibrates on the test input. \
All candidates of a model are built first and then timed in turns, in bursts, with a pause before \
each, so that no candidate's spinning threads slow the next one. fxopt's rows and the rivals \
within 1.3 times the fastest of their precision are then timed again without the others, in four \
times as many turns: their figures are from there. Where \
their ratio is then {CLOSE:.2f} or more, fxopt and its best rival are timed alone for up to 120 \
turns: the ratio is from this duel, the milliseconds are not. Medians \
in milliseconds; +- is half the distance between the quartiles; error is the relative output \
error against eager fp32. The machine is virtual, and may run at half \
its speed for seconds: that is taken out by a median polish of the turns \
(`fxopt/cost/steady.py`), but trust ratios within a table, not its absolute figures. One model \
compiled four times by one runtime is off by 3 % (standard deviation; resnet50 int8, 16 turns of \
5 calls, five times over; medians of plain timings by 9 %)."""

RULES = f"""\
A ratio is fxopt's latency over that of the best rival of the same precision; for int8 the best of \
those whose error is no larger ({ERROR_TOLERANCE:.0%} of tolerance, relative), or where there is \
none, marked *, of the most accurate ones that take up to {FAR_BEHIND:g} times as long as the \
fastest of them all. "Any precision" is the fastest rival of whatever precision with an error no \
larger, "any error" the fastest of the same precision however wrong it is. The rows of `fxopt \
torch-only` use no runtime but torch, and \
are compared with what torch and torchao offer. fxopt bf16 may drift by 5 %; it may choose to run \
in fp32."""


def render(results: Results) -> str:
    """The whole page."""
    sections = [
        ["# Latency", *_machines(results), INTRODUCTION],
        [*_revisions(results), *results.notes],
        ["## fxopt against the best rival", RULES, *_verdicts(summaries(results))],
        _peak(results),
        compile_times(results),
        ["## Every candidate", *_cases(results)],
    ]
    return "\n\n".join(part for section in sections for part in section) + "\n"


def _machines(results: Results) -> Iterator[str]:
    """Where the study ran."""
    used = sorted({row.machine for row in results.rows})
    if len(used) == 1:
        yield f"`benchmarks/latency.py` on {machine_text(results.machines[used[0]])}."
        return
    yield "`benchmarks/latency.py` on several machines, each precision of a case on one of them:"
    lines = (f"- {letter(place)}: {machine_text(results.machines[place])}." for place in used)
    yield "\n".join(lines)


def _revisions(results: Results) -> Iterator[str]:
    """Which commit was measured, and where several were, on what."""
    found = results.revisions()
    for (commit, place), cases in found.items():
        what = f"commit {commit}" if commit else "a commit not noted"
        where = f" on machine {letter(place)}" if len({m for _, m in found}) > 1 else ""
        which = f"; {', '.join(cases)}" if len(found) > 1 else ""
        yield f"fxopt at {what}{where}{which}."


def render_verdicts(results: Results) -> str:
    """The summary alone, for the terminal."""
    return _summary_table(summaries(results))


def case_table(rows: Sequence[Row]) -> str:
    """All candidates of one model, fastest first, then what failed."""
    lines = []
    for row in sorted(rows, key=lambda r: (not r.measured, r.milliseconds)):
        time = [f"{row.milliseconds:.2f}", f"{row.spread:.2f}", f"{row.error:.1e}"]
        numbers = time if row.measured else ["-", "-", "-"]
        note = row.remark or ran_in(row)
        lines.append([row.precision, row.candidate, *numbers, f"{row.build_seconds:.0f}", note])
    return _table(["precision", "candidate", "ms", "+-", "error", "build s", ""], lines)


def ran_in(row: Row) -> str:
    """What fxopt chose, region by region."""
    return "; ".join(_chosen(region["chosen"]) for region in row.report.get("regions", ()))


def _chosen(chosen: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in chosen.get("precisions", {}).items())
    return f"{chosen['backend']} ({counts})" if counts else str(chosen["backend"])


def _verdicts(found: Sequence[Summary]) -> Iterator[str]:
    yield _summary_table(found)
    for summary in found:
        yield f"### {_title(summary)}"
        yield _table(
            ["model", "batch", "ms", "error", "best rival", "ratio", "any precision", "any error"],
            [_verdict_line(verdict) for verdict in summary.verdicts],
        )
        if summary.unjudged:
            yield "Not judged: " + "; ".join(summary.unjudged) + "."


def _summary_table(found: Sequence[Summary]) -> str:
    headers = ["", "cases", "geometric mean", "limit", "worst", "limit", "kept", "any error"]
    return _table(headers, [_summary_line(summary) for summary in found])


def _summary_line(summary: Summary) -> list[str]:
    mean, worst = LIMITS[summary.kind, summary.precision]
    limits = ["-" if mean is None else f"{mean:.2f}", f"{worst:.2f}"]
    if not summary.verdicts:
        return [_title(summary), "0", "-", limits[0], "-", limits[1], "no", "-"]
    slowest = summary.verdicts[0].own
    return [
        _title(summary),
        str(len(summary.verdicts)),
        f"{summary.mean:.3f}",
        limits[0],
        f"{max(summary.ratios):.3f} ({slowest.model}, batch {slowest.batch})",
        limits[1],
        "yes" if summary.kept else "no",
        f"{summary.mean_any_error:.3f}",
    ]


def _verdict_line(verdict: Verdict) -> list[str]:
    own, best = verdict.own, verdict.best
    name = "-" if best is None else f"{best.candidate} ({best.milliseconds:.2f})"
    name += " *" if verdict.lenient else ""
    return [
        own.model,
        str(own.batch),
        f"{own.milliseconds:.2f}",
        f"{own.error:.1e}",
        name,
        *(_ratio(verdict, rival) for rival in (best, verdict.any_precision, verdict.any_error)),
    ]


def _ratio(verdict: Verdict, rival: Row | None) -> str:
    ratio = verdict.against(rival)
    if ratio is None or rival is None:
        return "-"
    return f"{ratio:.3f}" if rival is verdict.best else f"{ratio:.3f} ({rival.candidate})"


def _title(summary: Summary) -> str:
    return f"{summary.kind}, {summary.precision}"


def _peak(results: Results) -> Iterator[str]:
    """The section on the distance to the limit, where ``peak.py`` has measured it."""
    if not results.peaks:
        return
    yield "## Distance to the limit"
    yield (
        "The fastest matrix product, linear layer or convolution of any installed runtime, in "
        "billion multiply-adds a second. Shares are of the peak of that precision on the machine "
        "of the case, over the whole call."
    )
    for place, rates in results.peaks.items():
        found = (f"{kind} {rates[kind]['gmacs']:.0f} ({rates[kind]['by']})" for kind in rates)
        yield f"Machine {letter(int(place))}: {'; '.join(found)}."
    yield _table(["model", "batch", "GMAC", *PRECISIONS], [list(line) for line in shares(results)])


def _cases(results: Results) -> Iterator[str]:
    for model, batch in results.cases():
        places = sorted({row.machine for row in results.of(model, batch)})
        for place in places:
            where = f", machine {letter(place)}" if len(places) > 1 else ""
            yield f"### {model}, batch {batch}{where}"
            yield case_table(results.of(model, batch, place))


def _table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
