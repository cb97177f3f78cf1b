"""The section on what a call of ``optimize`` takes, beside what building the rivals takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rows import OWN, RIVAL, Results, Row
from tabulate import tabulate
from verdicts import geometric_mean

EXPLANATION = """\
Seconds. optimize is one call with all its checks and measurements; candidates is the sum of what \
it tried, passes what the passes took. A rival's build goes from the model to its first output. As \
the result may not be slower than the original, nor than another precision that the drift allows, \
optimize tries float32 beside bf16, and both beside int8, where they may win: "what it tried" are \
the builds of the rivals whose runtime it built something with, in that precision (never those \
that tune for minutes); "its precision" are those of its own precision, whether it tried their \
runtime or not."""

# By version, what a user who wants a program computed like that has to ask of a rival.
_PRECISIONS = {"exact": "fp32", "unrounded": "fp32", "reduced": "bf16", "lossy": "int8"}

# By how a rival's name begins: fxopt's backend for the same runtime.
_BACKENDS = {
    "eager": "eager",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "torch.compile": "inductor",
    "torchao": "inductor",
    "torch fx": "onednn",
    "torch dynamic": "onednn",
}


def compile_times(results: Results) -> Iterator[str]:
    """What one ``optimize`` call took, beside its candidates' and the rivals' builds."""
    own = [row for row in results.rows if row.kind != RIVAL and row.measured]
    if not own:
        return
    yield "## Compile time"
    yield EXPLANATION
    by_name = {name: [r for r in own if r.candidate == name] for name in _names(own)}
    headers = ["optimize over", "cases", "what it tried", "worst", "no longer"]
    headers += ["its precision", "worst", "no longer"]
    yield _table(headers, [_summary(name, rows, results) for name, rows in by_name.items()])
    headers = ["model", "batch", "", "optimize", "candidates", "passes"]
    headers += ["what it tried", "its precision", "slowest rival"]
    yield _table(headers, [_line(row, results) for row in own])


def built_like(row: Row, results: Results) -> list[Row]:
    """The rivals whose runtimes one of fxopt's rows tried in their precision."""
    tried = {(c["backend"].split()[0], _PRECISIONS[c["version"]]) for c in _tried(row)}
    return [
        r for r in _rivals(row, results) if _runtime(r) in tried and "max-auto" not in r.candidate
    ]


def built_beside(row: Row, results: Results) -> list[Row]:
    """The rivals of the precision of one of fxopt's rows."""
    return [rival for rival in _rivals(row, results) if rival.precision == row.precision]


def _rivals(row: Row, results: Results) -> list[Row]:
    """Those of the case that were built; beside torch alone, those that need no more."""
    rivals = [r for r in results.beside(row) if r.kind == RIVAL and r.measured]
    return [rival for rival in rivals if rival.torch or row.kind == OWN]


def _runtime(rival: Row) -> tuple[str, str]:
    backend = next(b for prefix, b in _BACKENDS.items() if rival.candidate.startswith(prefix))
    return backend, rival.precision


def _tried(row: Row) -> list[dict[str, Any]]:
    """What it built, whatever came of that."""
    candidates = [c for region in row.report["regions"] for c in region["candidates"]]
    return [candidate for candidate in candidates if candidate["seconds"] > 0]


def _seconds(rivals: Iterable[Row]) -> float:
    return sum(rival.build_seconds for rival in rivals)


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.candidate for row in rows))


def _summary(name: str, rows: Sequence[Row], results: Results) -> list[str]:
    sums = [
        {f"{row.model}, batch {row.batch}": (row, _seconds(of(row, results))) for row in rows}
        for of in (built_like, built_beside)
    ]
    ratios = [{c: row.report["seconds"] / s for c, (row, s) in each.items() if s} for each in sums]
    return [name, str(len(rows)), *(text for each in ratios for text in _outcome(each))]


def _outcome(ratios: Mapping[str, float]) -> list[str]:
    if not ratios:
        return ["-", "-", "-"]
    worst = max(ratios, key=lambda case: ratios[case])
    kept = sum(ratio <= 1 for ratio in ratios.values())
    mean = geometric_mean([*ratios.values()])
    return [f"{mean:.2f}", f"{ratios[worst]:.2f} ({worst})", f"{kept} of {len(ratios)}"]


def _line(row: Row, results: Results) -> list[str]:
    like, beside = built_like(row, results), built_beside(row, results)
    slowest = max([*like, *beside], key=lambda rival: rival.build_seconds, default=None)
    tried = _tried(row)
    return [
        row.model,
        str(row.batch),
        row.candidate,
        f"{row.report['seconds']:.1f}",
        f"{sum(c['seconds'] for c in tried):.1f} ({len(tried)})",
        f"{sum(p['seconds'] for p in row.report['passes']):.1f}",
        f"{_seconds(like):.1f} ({len(like)})",
        f"{_seconds(beside):.1f} ({len(beside)})",
        "-" if slowest is None else f"{slowest.build_seconds:.1f} ({slowest.candidate})",
    ]


def _table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
