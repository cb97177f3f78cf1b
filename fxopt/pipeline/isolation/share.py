"""How much of the processor a worker gets beside its parent while it starts.

A worker has a session of its own. Linux divides time among sessions, not threads, where it groups
them (autogroup, https://man7.org/linux/man-pages/man7/sched.7.html): beside two workers that
start, a parent whose calls keep two cores busy has a third of them. Each group has a nice value,
which may also go down again. Elsewhere there is nothing to set, and all threads are equal.
"""

from __future__ import annotations

import time
from pathlib import Path

_LEAST, _EQUAL = 19, 0
_AGAIN_SECONDS, _TRIES = 0.1, 5  # the kernel takes one change in a tenth of a second


def give_way(pid: int) -> None:
    """Leaves the session of a process only what time the others do not use."""
    _set_nice(pid, _LEAST)


def share_equally(pid: int) -> None:
    """Makes the session of a process equal to the others again."""
    _set_nice(pid, _EQUAL)


def _set_nice(pid: int, value: int) -> None:
    left = _TRIES
    while left and not _is_done(Path(f"/proc/{pid}/autogroup"), str(value)):
        left -= 1
        time.sleep(_AGAIN_SECONDS)


def _is_done(setting: Path, value: str) -> bool:
    """Whether there is nothing more to try."""
    try:
        setting.write_text(value)
    except BlockingIOError:
        return False
    except OSError:  # there are no such groups here, or the process is gone
        return True
    return True
