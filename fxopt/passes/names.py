"""Layers that the user names, by patterns in which ``*`` matches any text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from fxopt.errors import PassError

_SHOWN = 5


def is_named(name: str, patterns: Iterable[str]) -> bool:
    """Whether a pattern matches a layer's qualified name, case and all."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_names(patterns: Iterable[str], names: Sequence[str], setting: str) -> None:
    """Makes sure that each pattern matches a name.

    Args:
        patterns: What the user gave.
        names: The qualified names of the layers that it can mean.
        setting: Where the user gave it, such as ``prune: skip``.

    Raises:
        PassError: A pattern matches none; it says which name comes close, or which there are.
    """
    for pattern in patterns:
        if not any(is_named(name, [pattern]) for name in names):
            raise PassError(f"{setting} names {pattern!r}, but there is no such layer",
                            hint=_mention(pattern, names))  # fmt: skip


def _mention(pattern: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(pattern, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    more = ", ..." if len(names) > _SHOWN else ""
    return f"there are: {', '.join(sorted(names)[:_SHOWN])}{more}" if names else "there are none"
