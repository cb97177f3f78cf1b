"""What costs too much quality is tried again in milder settings, before it is given up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from fxopt.passes import Context, Milder, Pass
from fxopt.pipeline.sandbox import seeded
from fxopt.pipeline.trial import Trial
from fxopt.pipeline.verdict import Reject, blamed


def relax(
    failed: Trial, attempt: Callable[[Pass], Trial], context: Context, drift: float | None = None
) -> Trial:
    """Looks for the strongest of a pass's milder settings that keeps the limits.

    It bisects, so of n settings it tries log2(n).

    Args:
        failed: A trial that was over a limit.
        attempt: Runs a pass on the same program and examines it.
        context: A copy that the pass may change.
        drift: What is aimed at, as lowered code may drift more than the program: a setting that
            keeps the limits and not this is taken only where there is no other.

    Returns:
        The trial of that setting; ``failed`` where there is none, with a word on how far it got.
    """
    try:
        options = _options(failed, context)
    except Reject as reject:
        failed.reason = f"{failed.reason}; {reject}"
        return failed
    if not options.passes:
        return failed
    context.progress(f"{failed.name} is over a limit: {len(options.passes)} milder settings")
    best, mildest = _bisect(options.passes, attempt, math.inf if drift is None else drift)
    if best is None:
        failed.reason = f"{failed.reason}; of its milder settings, {mildest}"
    else:
        best.details["milder"] = failed.reason
        best.started, best.ended = failed.started, time.perf_counter()
    (best or failed).details["costs"] = dict(options.costs)
    return best or failed


def _options(failed: Trial, context: Context) -> Milder:
    with blamed(failed.item, "failed to say what its milder settings are"):
        with seeded(context.seed):
            options = failed.item.milder(failed.before.clone(), context)
        if not isinstance(options, Milder):
            raise TypeError(f"it returned a {type(options).__name__}, not a Milder")
        strange = [item for item in options.passes if type(item) is not type(failed.item)]
        if strange:
            raise TypeError(f"{strange[0]!r} is not a {type(failed.item).__name__}")
    return options


def _bisect(
    options: Sequence[Pass], attempt: Callable[[Pass], Trial], drift: float
) -> tuple[Trial | None, str]:
    """The trial of the first option that is accepted, and why the last that is not was refused."""
    low, high, refused = 0, len(options), ""
    best: Trial | None = None
    near: Trial | None = None
    while low < high:
        middle = (low + high) // 2
        tried = attempt(options[middle])
        if tried.status == "applied" and (tried.drift or 0.0) <= drift:
            best, high = tried, middle
            continue
        if tried.status == "applied":
            near = tried
        elif not tried.over_limit:  # it cannot be told which way to go on
            refused = tried.reason
            break
        refused, low = tried.reason, middle + 1
    return best or near, refused
