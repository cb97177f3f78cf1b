"""The race: candidates and the original, timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fxopt.cost import Latency, measure
from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import LoweringJob

_ORIGINAL = "original"

# Candidates that come close to each other get more turns than those that are clearly behind. On a
# virtual machine a turn is off by 12 %, however long it is: only more of them tell who is faster.
_ROUNDS = 16
_NARROWING = 0.6
_SECONDS = 20.0


def race(candidates: Sequence[Candidate], job: LoweringJob) -> Latency:
    """Times candidates that are built, and notes their latencies.

    Returns:
        The latency of the original.
    """
    calls: dict[str, Callable[[], object]] = {_ORIGINAL: job.original}
    for candidate in candidates:
        calls[candidate.name] = candidate.call(job.examples[0])
    job.progress(f"measuring {len(calls)} candidates for {job.name}")
    with torch.no_grad():
        latencies = measure(calls, rounds=_ROUNDS, narrowing=_NARROWING, seconds=_SECONDS)
    for candidate in candidates:
        latency = latencies[candidate.name]
        candidate.latency = latency
        candidate.note(milliseconds=latency.median, spread=latency.spread)
    return latencies[_ORIGINAL]
