"""The worker processes in which backends are tried first, started while the model is captured."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fxopt.backends import Backend
from fxopt.pipeline.isolation import Isolation, shared_isolation

_SETTING = "FXOPT_ISOLATION"
"""Environment variable: 0 to try backends in the calling process alone, 1 for a single worker."""


def start_early(backends: Sequence[str] | None) -> None:
    """Starts the first worker, which takes seconds, unless it may turn out that nobody needs it."""
    if backends is None and _most() > 0:
        shared_isolation().warm_up()


def first_worker(backends: Sequence[Backend]) -> Isolation | None:
    """Where backends are tried; None where nobody needs it."""
    if _most() < 1 or all(backend.info.native for backend in backends):
        return None
    return _started(shared_isolation())


def second_worker(backends: Sequence[Backend], time_limit: float | None) -> Isolation | None:
    """Where those that build slowly are tried while the others are built; None to do without.

    What calls kernels one by one has next to nothing to build. With a time limit, what builds fast
    is measured first, so that there is something to go on with.
    """
    infos = [backend.info for backend in backends]
    slow = {info.builds_slowly for info in infos if not info.native and not info.node_by_node}
    if _most() < 2 or time_limit is not None or len(slow) < 2:
        return None
    return _started(shared_isolation(second=True))


def _started(isolation: Isolation) -> Isolation:
    isolation.warm_up()
    return isolation


def _most() -> int:
    """How many workers there may be: no more than there are cores for them."""
    chosen = os.environ.get(_SETTING, "")
    return int(chosen) if chosen in ("0", "1") else min(2, _cores())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
