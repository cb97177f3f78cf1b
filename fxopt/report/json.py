"""The report as JSON, for other programs: everything that the text form shortens is in it."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from fxopt.errors import InputError
from fxopt.report.records import Report

SCHEMA = 1

T = TypeVar("T")


def report_to_json(report: Report) -> str:
    """The whole report as JSON text.

    Numbers that JSON has no form for (``nan``, ``inf``) become texts, and so does whatever else
    a plugin put into ``details`` that is neither a number, a text, a list nor a mapping.
    """
    data = {"schema": SCHEMA, **_plain(dataclasses.asdict(report))}
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def save_report(report: Report, path: Path) -> None:
    """Writes the whole report to ``path``, whose folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report_to_json(report), encoding="utf-8")


def report_from_json(text: str) -> Report:
    """The report that :func:`report_to_json` wrote.

    Raises:
        InputError: The text is no report, or one of another version.
    """
    try:
        data = json.loads(text)
        schema = data.pop("schema")
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"this is no report of fxopt: {error!r}") from error
    if schema != SCHEMA:
        raise InputError(
            f"the report has the version {schema}, and this fxopt reads version {SCHEMA}",
            hint="read it with the version of fxopt that wrote it",
        )
    try:
        return _record(Report, data)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the report is damaged: {error!r}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _record(cls: type[T], data: dict[str, Any]) -> T:
    hints = typing.get_type_hints(cls)
    unknown = set(data) - set(hints)
    if unknown:
        raise ValueError(f"{cls.__name__} has no {', '.join(sorted(unknown))}")
    return cls(**{name: _value(hints[name], item) for name, item in data.items()})


def _value(hint: Any, data: Any) -> Any:
    """``data`` in the type that the record's field declares: JSON has neither tuples nor nan."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if data is None else _value(args[0], data)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _record(hint, data)
    if origin is tuple:
        return tuple(_value(args[0], item) for item in data)
    return float(data) if hint is float else data
