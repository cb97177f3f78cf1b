"""Waits until the threads of this process rest."""

from __future__ import annotations

import time

# As long as a look takes, and how much of it threads may be at work: a clock tick, some systems'
# unit of what a process used, is a hundredth of a second.
_LOOK_SECONDS = 0.01
_AT_WORK = 0.2


def wait_until_idle(seconds: float) -> None:
    """Sleeps until no thread of this process is at work.

    Worker threads of some runtimes spin after a call, waiting for the next one: for nothing at
    all, some milliseconds or a fifth of a second, by runtime and setting.

    Args:
        seconds: How long to wait at most; others than those may be at work for good.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        used = time.process_time()
        time.sleep(_LOOK_SECONDS)
        if time.process_time() - used < _AT_WORK * _LOOK_SECONDS:
            return
