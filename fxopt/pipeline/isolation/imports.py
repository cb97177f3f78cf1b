"""What a worker imports while nobody asks for anything: what the backends say they will need."""

from __future__ import annotations

import importlib
import select
from collections.abc import Iterable, Iterator
from contextlib import suppress

from fxopt.registry import Registry


def wanted(registry: Registry) -> Iterator[str]:
    """Names of the modules, each once."""
    names = [name for cls in registry.backends.values() for name in cls.info.imports]
    return iter(dict.fromkeys(names))


def import_while_idle(names: Iterable[str], pipe: int) -> None:
    """Imports modules until there is something to read from ``pipe``.

    What cannot be imported is left alone: whoever needs it will say what is wrong.
    """
    for name in names:
        if _has_news(pipe):
            return
        with suppress(Exception):  # a broken package may raise anything
            importlib.import_module(name)


def _has_news(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(0))
