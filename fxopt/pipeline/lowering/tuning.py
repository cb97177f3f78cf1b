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
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fxopt.pipeline.lowering.candidate import Candidate
from fxopt.pipeline.lowering.job import LoweringJob

_FORMAT = 1
_VARIABLE = "FXOPT_CACHE_DIR"

# Latencies that are further apart than this are not for the noise of a machine to decide.
_CLOSE = 1.2


@dataclass(frozen=True)
class TuningFile:
    """The file of one job; it may not exist yet.

    Attributes:
        path: Where it is.
        key: What it is about; a file with another key is not read.
    """

    path: Path
    key: str

    def read(self) -> dict[str, float]:
        """Milliseconds by candidate; empty where there is no file, or not one of this format."""
        try:
            held = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return dict(_latencies(held)) if _is_mine(held, self.key) else {}

    def write(self, latencies: Mapping[str, float]) -> None:
        """Replaces the file in one step, so that no reader ever sees half of it.

        A folder that cannot be written to is no reason to fail: nothing is kept then.
        """
        held = {"format": _FORMAT, "key": self.key, "milliseconds": dict(latencies)}
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
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fxopt"


def drop_slow(candidates: Sequence[Candidate], known: Mapping[str, float]) -> None:
    """Takes out what was clearly slower than the best before."""
    best = min((known[c.name] for c in candidates if c.name in known), default=math.inf)
    for candidate in candidates:
        before = known.get(candidate.name)
        if before is not None and before > _CLOSE * best and not candidate.record.reason:
            candidate.drop(f"took {before:.3g} ms when last measured here, the best {best:.3g} ms")


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


def _latencies(held: dict[str, Any]) -> Iterator[tuple[str, float]]:
    found = held.get("milliseconds")
    for name, value in found.items() if isinstance(found, dict) else ():
        if isinstance(value, (int, float)) and math.isfinite(value) and value > 0:
            yield name, float(value)
