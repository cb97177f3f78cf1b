"""How much memory is left, of the machine or of the container that this process runs in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")

# Files of the two versions of control groups: the limit, what is used, and what that consists of,
# with the name there of cached files that would go first.
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def memory_left(meminfo: Path = _MEMINFO, group: Path = _GROUP) -> float:
    """The share of the memory that could still be used without anything being ended for it.

    Of the machine, or of what its control group allows this process, whichever is less. See
    https://man7.org/linux/man-pages/man5/proc_meminfo.5.html and
    https://docs.kernel.org/admin-guide/cgroup-v2.html.

    Args:
        meminfo: Where the kernel tells of the machine.
        group: Where it tells of the control group; other processes see another folder there.

    Returns:
        From 0 to 1; 1 on systems that do not tell.
    """
    machine = _numbers(meminfo)
    shares = [_share(machine.get("MemAvailable:"), machine.get("MemTotal:"))]
    for limit, used, parts, cached in _LIMITS:
        allowed, taken = _number(group / limit), _number(group / used)
        if allowed is not None and taken is not None:
            free = allowed - taken + _numbers(group / parts).get(cached, 0)
            shares.append(_share(free, allowed))
    return min(shares)


def _share(free: int | None, total: int | None) -> float:
    return min(max(free / total, 0.0), 1.0) if free is not None and total else 1.0


def _number(file: Path) -> int | None:
    """The number that a file consists of; None where it is a word, such as ``max``."""
    words = _words(file)
    return int(words[0][0]) if words and words[0][0].isdecimal() else None


def _numbers(file: Path) -> Mapping[str, int]:
    """Lines of a name and a number, with or without a unit."""
    return {line[0]: int(line[1]) for line in _words(file) if line[1:] and line[1].isdecimal()}


def _words(file: Path) -> list[list[str]]:
    try:
        return [line.split() for line in file.read_text().splitlines() if line.strip()]
    except OSError:  # no such file
        return []
