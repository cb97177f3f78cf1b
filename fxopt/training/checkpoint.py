"""Checkpoints: the whole state of a training, from which it goes on to the same weights."""

from __future__ import annotations

import glob
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

_KEPT = 8  # checkpoints of trainings of one name, such as attempts at several settings


def save(state: dict[str, Any], folder: Path, name: str, identity: str) -> None:
    """Writes a checkpoint; what was there stays whole until the new one is complete.

    Of trainings of the same name, those that were used last are kept.

    Args:
        state: What :func:`load` will return.
        folder: Where it goes.
        name: Of the training.
        identity: What tells it from others of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _path(folder, name, identity)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(state, unfinished)
    unfinished.replace(path)
    others = folder.glob(f"{glob.escape(name)}-*.pt")
    for old in sorted(others, key=lambda other: other.stat().st_mtime_ns)[:-_KEPT]:
        old.unlink(missing_ok=True)


def load(folder: Path, name: str, identity: str) -> dict[str, Any] | None:
    """The state in a checkpoint; None where there is none, or none that can be read.

    Nothing in the file is executed.
    """
    path = _path(folder, name, identity)
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        path.touch()  # it is used
    except FileNotFoundError:
        return None
    except Exception:  # noqa: BLE001 - truncated and foreign files raise all kinds of errors
        return None
    return state if isinstance(state, dict) else None


def _path(folder: Path, name: str, identity: str) -> Path:
    return folder / f"{name}-{identity}.pt"


def random_state() -> dict[str, Any]:
    """Where all random number generators are."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (str(kind), [int(key) for key in keys], position, has_gauss, cached),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Puts all random number generators where they were."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
