"""The machine that a benchmark ran on, for its table."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fxopt.cost import find_target

_PACKAGES = ("torch", "torchao", "torchvision", "transformers", "onnxruntime", "openvino", "nncf")


def describe_machine() -> dict[str, Any]:
    """Chip, instruction sets, cores, memory and versions, as plain data."""
    target = find_target("cpu")
    return {
        "chip": f"{target.chip}{_series()}",
        "features": list(target.features),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def machine_text(machine: dict[str, Any]) -> str:
    """The machine in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['chip']}, {machine['cores']} cores, {machine['threads']} threads used, "
        f"{machine['memory_gib']} GiB of memory, {', '.join(machine['features'])}; "
        f"{machine['system']}, Python {machine['python']}, {versions}"
    )


def letter(place: int) -> str:
    """What tables call the machine at a place among several."""
    return chr(ord("A") + place)


def revision() -> str:
    """The commit that is checked out here, marked where files differ from it; empty outside git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    folder = Path(__file__).parent
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def _series() -> str:
    """Family and model, which tell chips apart that a virtual machine calls by one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    fields = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    family, model = fields.get("cpu family"), fields.get("model")
    return f" (family {family}, model {model})" if family and model else ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
