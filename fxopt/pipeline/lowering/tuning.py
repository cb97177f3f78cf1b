"""What was measured before: latencies of candidates, kept on disk from one run to the next.

A file holds the latencies of one job: the same programs, sizes, machine, thread count and
versions of all software involved. It only spares building what was slow before; whatever is left
is checked and raced again. So a wrong file can cost speed, never correctness.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import LoweringJob

_FORMAT = 2
_VARIABLE = "FXOPT_CACHE_DIR"

# How far behind the best a candidate must have been not to be built again: noise does not explain
# so much, neither where all were timed in turns nor where each was timed once, on its own.
_FAR_IN_RACE = 1.25
_FAR_IN_TRIAL = 2.0


@dataclass(frozen=True)
class Timing:
    """What a candidate took.

    Attributes:
        milliseconds: Median latency.
        raced: Whether it was timed in turns with others, not once in the worker.
    """

    milliseconds: float
    raced: bool

    def far_behind(self, best: float) -> bool:
        """Whether noise does not explain the distance to ``best`` milliseconds."""
        return self.milliseconds > best * (_FAR_IN_RACE if self.raced else _FAR_IN_TRIAL)


@dataclass(frozen=True)
class TuningFile:
    """The file of one job; it may not exist yet.

    Attributes:
        path: Where it is.
        key: What it is about; a file with another key is not read.
    """

    path: Path
    key: str

    def read(self) -> dict[str, Timing]:
        """Timings by candidate; empty where there is no file, or not one of this format."""
        try:
            held = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return dict(_timings(held)) if _is_mine(held, self.key) else {}

    def write(self, timings: Mapping[str, Timing]) -> None:
        """Replaces the file in one step, so that no reader ever sees half of it.

        A folder that cannot be written to is no reason to fail: nothing is kept then.
        """
        entries = {name: asdict(timing) for name, timing in timings.items()}
        held = {"format": _FORMAT, "key": self.key, "timings": entries}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
            with os.fdopen(handle, "w") as file:
                json.dump(held, file, indent=1)
            Path(name).replace(self.path)
        except OSError:
            return


def tuning_file(candidates: Sequence[Candidate], job: LoweringJob) -> TuningFile:
    """The file for what these candidates take on this machine."""
    key = "\n".join(_facts(candidates, job))
    name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    return TuningFile(cache_folder() / "tuning" / f"{name}.json", key)


def cache_folder() -> Path:
    """Where fxopt keeps what it measured: ``FXOPT_CACHE_DIR``, or the user's cache folder."""
    chosen = os.environ.get(_VARIABLE)
    if chosen:
        return Path(chosen)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # this user has none, as in some containers
        base = tempfile.gettempdir()
    return Path(base) / "fxopt"


def drop_slow(candidates: Sequence[Candidate], known: Mapping[str, Timing]) -> None:
    """Takes out what was clearly slower than the best before."""
    found = [known[c.name].milliseconds for c in candidates if c.name in known]
    best = min(found, default=math.inf)
    for candidate in candidates:
        before = known.get(candidate.name)
        if before is not None and before.far_behind(best) and not candidate.record.reason:
            took = f"{before.milliseconds:.3g} ms"
            reason = f"took {took} when last measured here, the best {best:.3g} ms"
            candidate.drop(reason, slower=True)


def timings(candidates: Sequence[Candidate]) -> dict[str, Timing]:
    """What all candidates took that ran and were right."""
    return {
        candidate.name: Timing(candidate.record.milliseconds, candidate.latency is not None)
        for candidate in candidates
        if candidate.record.milliseconds is not None and not candidate.record.reason
    }


def updated(known: Mapping[str, Timing], found: Mapping[str, Timing]) -> dict[str, Timing]:
    """What was measured before and what was measured now, at the speed that the machine has now.

    It may be twice as fast today, or shared with others: as they were, the timings of those that
    were not tried again would be too fast or too slow beside the new ones.
    """
    ratios = [found[n].milliseconds / known[n].milliseconds for n in found if n in known]
    factor = statistics.geometric_mean(ratios) if ratios else 1.0
    scaled = {n: Timing(factor * t.milliseconds, t.raced) for n, t in known.items()}
    return scaled | dict(found)


def _facts(candidates: Sequence[Candidate], job: LoweringJob) -> Iterator[str]:
    """All that latency depends on, a line each."""
    target = job.target
    yield f"{target.name} {target.chip} {target.threads} {' '.join(target.features)}"
    yield " ".join(_describe(value) for value in job.examples[0])
    versions = {candidate.version.name: candidate.version for candidate in candidates}
    for version in versions.values():
        yield f"{version.name} {version.program.fingerprint()}"
    packages = {"fxopt", "torch"}
    for candidate in candidates:
        yield f"{candidate.name} {candidate.assignment!r}"
        packages.update(p for s in candidate.assignment.shares for p in s.backend.info.packages)
    for package in sorted(packages):
        yield f"{package} {_installed(package)}"


def _describe(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    return f"{value.dtype}{list(value.shape)}"


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _is_mine(held: object, key: str) -> bool:
    return isinstance(held, dict) and held.get("format") == _FORMAT and held.get("key") == key


def _timings(held: dict[str, Any]) -> Iterator[tuple[str, Timing]]:
    found = held.get("timings")
    for name, entry in found.items() if isinstance(found, dict) else ():
        value = entry.get("milliseconds") if isinstance(entry, dict) else None
        if isinstance(value, (int, float)) and math.isfinite(value) and value > 0:
            yield name, Timing(float(value), bool(entry.get("raced")))
