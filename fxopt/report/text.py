"""The report as text: what a user reads in the terminal."""

from __future__ import annotations

import io
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fxopt.report import format as show
from fxopt.report.records import RegionRecord, Report

_INDENT = (0, 0, 0, 2)
_LABEL = 10  # columns of the labels on the left: "latency", "pass", "recipe" ...
_SHOWN = 6  # lines of refusals a pass, before the rest is left to report.json


def render_text(report: Report, width: int = 100) -> str:
    """The report as plain text, without colours, for logs and ``print(report)``.

    Args:
        report: What to show.
        width: Columns to fit into; longer texts are wrapped in their own column.
    """
    sink = io.StringIO()
    console = Console(file=sink, width=width, color_system=None, legacy_windows=False)
    render(report, console)
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines()) + "\n"


def render(report: Report, console: Console) -> None:
    """Prints the report on ``console``, at its width and with its colours."""
    console.print(Group(*_sections(report)), highlight=False)


def _sections(report: Report) -> Iterator[RenderableType]:
    yield _header(report)
    for section in (_figures(report), _passes(report), _regions(report), _texts(report)):
        if section.row_count:
            yield Text()
            yield Padding(section, _INDENT)


def _header(report: Report) -> Table:
    header = Table.grid(expand=True, padding=(0, 2))
    header.add_column()
    header.add_column(justify="right")
    header.add_row(
        Text(f"{report.model} on {report.target}", "bold"), Text(f"input {report.inputs}")
    )
    return header


def _grid(columns: int = 1) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", min_width=_LABEL, no_wrap=True)
    for _ in range(columns):
        grid.add_column(overflow="fold")
    return grid


def _table(*columns: str, right: tuple[str, ...] = (), wrapped: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, name in enumerate(columns):
        table.add_column(
            name,
            justify="right" if name in right else "left",
            min_width=_LABEL if index == 0 else None,
            # the last column takes what is left, and is the one that wraps unless others do too
            no_wrap=index < len(columns) - 1 and name not in wrapped,
            overflow="fold",
        )
    return table


def _figures(report: Report) -> Table:
    grid = _grid(columns=3)
    if report.latency_after is not None:
        _latency(grid, report, report.latency_after)
    if report.size_before:
        sizes = f"{show.megabytes(report.size_before)} -> {show.megabytes(report.size_after)}"
        grid.add_row("size", sizes, show.ratio(report.size_before, report.size_after), "weights")
    quality = _quality(report)
    if quality:
        grid.add_row("quality", quality[0], "", ", ".join(quality[1:]))
    if report.score_before is not None and report.score_after is not None:
        scores = f"{report.score_before:.4f} -> {report.score_after:.4f}"
        change = f"{report.score_after - report.score_before:+.4f}"
        grid.add_row("score", scores, change, "evaluate, higher is better")
    return grid


def _latency(grid: Table, report: Report, after: float) -> None:
    before = report.latency_before
    times = "" if before is None else f"{show.milliseconds(before)} ms -> "
    speedup = "" if before is None else show.ratio(before, after)
    spread = f"median, +-{report.latency_spread:.1g} ms"
    grid.add_row("latency", f"{times}{show.milliseconds(after)} ms", speedup, spread)


def _quality(report: Report) -> list[str]:
    parts = [f"drift {show.relative(report.drift)}"] if report.drift is not None else []
    if report.same_top1 is not None:
        same, count = report.same_top1
        parts.append(f"same top-1 on {same} of {count} calibration samples")
    return parts


def _passes(report: Report) -> Table:
    scored = any(record.score is not None for record in report.passes)
    score = ("score",) if scored else ()
    smaller = any(record.bytes_after != record.bytes_before for record in report.passes)
    sizes = ("work", "size") if smaller else ()
    columns = ("pass", "nodes", "seconds", *sizes, "drift", *score, "what it did")
    table = _table(*columns, right=("seconds", "work", "size", "drift", "score"))
    for record in report.passes:
        cells = [record.name, show.nodes(record), f"{record.seconds:.1f}"]
        if smaller:
            cells += [
                show.change(record.work_before, record.work_after),
                show.change(record.bytes_before, record.bytes_after),
            ]
        cells.append(show.pass_drift(record))
        if scored:
            cells.append(show.NONE if record.score is None else f"{record.score:.4f}")
        style = "yellow" if record.status == "rolled back" else ""
        table.add_row(*map(Text, cells), Text(show.outcome(record), style))
    return table


def _regions(report: Report) -> Table:
    columns = ("region", "operations", "backend", "ran in", "ms", "next best")
    table = _table(*columns, right=("ms",), wrapped=("backend",))
    for region in report.regions:
        cells = (
            region.name,
            str(region.operations),
            show.candidate(region, region.chosen),
            show.precisions(region.chosen),
            show.milliseconds(region.chosen.milliseconds),
            show.next_best(region),
        )
        table.add_row(*map(Text, cells))  # as Text: a name may hold brackets, rich's markup
    return table


def _texts(report: Report) -> Table:
    grid = _grid()
    grid.add_row("recipe", Text(report.recipe or "(no pass)"))
    if report.seconds:
        grid.add_row("took", f"{report.seconds:.1f} s")
    _listed(grid, "notes", list(report.notes))
    for record in report.passes:
        lines = show.shorten(record.refused, _SHOWN)
        _listed(grid, "refused", [f"{record.name}: {line}" for line in lines])
        costs = show.shorten(show.costs(record), _SHOWN)
        _listed(grid, "costs most", [f"{record.name}: {line}" for line in costs])
    for region in report.regions:
        fallbacks = show.shorten(region.chosen.fallbacks, _SHOWN)
        _listed(grid, "fell back", [f"{region.name}: {line}" for line in fallbacks])
        _listed(grid, "placed", _placed(region))
        slower = show.slower(region)
        _listed(grid, "slower", [f"{region.name}: {slower}"] if slower else [])
        _listed(grid, "out", _excluded(region))
    return grid


def _placed(region: RegionRecord) -> list[str]:
    summary = show.placement(region.chosen)
    lines = show.shorten(region.chosen.placed, _SHOWN)
    return [f"{region.name}: {line}" for line in (summary, *lines)] if summary else []


def _excluded(region: RegionRecord) -> list[str]:
    return [
        f"{region.name}: {show.candidate(region, other)}: {other.reason}"
        for other in region.candidates
        if other.reason and not other.slower
    ]


def _listed(grid: Table, label: str, lines: list[str]) -> None:
    for index, line in enumerate(lines):
        grid.add_row("" if index else label, Text(line))
