"""The folder of temporary files, of which nothing stays, not even where its process is killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

SCRATCH = "scratch"
"""What backends keep, below the folder."""

_PREFIX = "fxopt-trials-"
_LOCK = "lock"
_NEW_SECONDS = 60.0  # a folder that young may be about to be locked


class LockedFolder:
    """A folder that is locked as long as this process, or a fork of it, lives.

    On creation, folders that others have left behind unlocked are removed.
    """

    def __init__(self) -> None:
        _remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = _lock(self.path)

    def remove(self) -> None:
        """Removes it with all its files."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_abandoned() -> None:
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or another process is faster
            if time.time() - path.stat().st_mtime > _NEW_SECONDS:
                lock = _lock(path)
                if lock is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(lock)


def _lock(folder: Path) -> int | None:
    """Takes the lock of a folder; None where another process has it."""
    import fcntl  # not on every system

    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
