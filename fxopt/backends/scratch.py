"""Files that a backend may keep for its next build of the same program.

A program is first built in a worker process, then perhaps in several variants, then in the
caller's process. What is slow and the same each time, such as the translation into a runtime's own
format, can be left here by the one for the others.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TICK_SECONDS = 0.05

_current: list[Path] = []


@contextmanager
def use_scratch(folder: Path) -> Iterator[None]:
    """Lets backends keep files in ``folder`` for a while; it is made when it is needed.

    Where one is in use already, what it holds is found, too.
    """
    _current.append(folder)
    try:
        yield
    finally:
        _current.remove(folder)


def find_files(key: str, patience: float = 0.0) -> Path | None:
    """The folder with the files for ``key`` that another process has left.

    Args:
        key: As for :func:`keep_files`; with a ``*``, any that begins as it does.
        patience: Seconds to wait for it.

    Returns:
        The folder, to be read at once; None where there is none.
    """
    end = time.monotonic() + patience
    while (place := _place_of(key)) is None and time.monotonic() < end:
        time.sleep(_TICK_SECONDS)
    return place


def keep_files(key: str, make: Callable[[Path], None]) -> Path | None:
    """A folder with the files for ``key``, made now or left by another process.

    Args:
        key: A name for a file that says all that the files depend on, such as a fingerprint.
        make: Writes them into the folder that it is given.

    Returns:
        The folder, to be read at once; None where nothing is kept now.
    """
    if not _current:
        return None
    place = _place_of(key)
    if place is None:
        place = _current[-1] / key
        _current[-1].mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=_current[-1]))
        try:
            make(fresh)
            with suppress(OSError):  # another process was faster
                fresh.rename(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return place


def _place_of(key: str) -> Path | None:
    return next((place for folder in _current for place in folder.glob(key)), None)
