"""What the memory of this process consists of, as Linux tells it.

See https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html for the file that is read.
"""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ *(.*)$")


class Mapping(NamedTuple):
    """A range of addresses.

    Attributes:
        start: Its first address.
        end: The one after its last.
        mode: What it is open for, such as ``rw-p``.
        name: The file that it maps; empty, or in brackets, where it maps none.
        resident: Bytes that are in memory.
        anonymous: Those of them that are no file's, or no longer.
    """

    start: int
    end: int
    mode: str
    name: str
    resident: int = 0
    anonymous: int = 0

    @property
    def is_file(self) -> bool:
        """Whether it maps a file."""
        return self.name.startswith("/")


def mappings() -> list[Mapping]:
    """All ranges of this process; none on systems that do not tell."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return []
    found: list[Mapping] = []
    for line in lines:
        if line.startswith("Rss:"):
            found[-1] = found[-1]._replace(resident=_bytes(line))
        elif line.startswith("Anonymous:"):
            found[-1] = found[-1]._replace(anonymous=_bytes(line))
        elif line[0] in "0123456789abcdef" and (header := _HEADER.match(line)):
            found.append(Mapping(int(header[1], 16), int(header[2], 16), header[3], header[4]))
    return found


def advise(start: int, end: int, advice: int) -> None:
    """Tells the kernel how a range will be used; it may not listen.

    Args:
        start: A multiple of the size of a page.
        end: The address after the last.
        advice: A constant of ``<linux/mman.h>``.
    """
    with suppress(OSError, AttributeError):  # no such C library
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


def _bytes(line: str) -> int:
    return int(line.split()[1]) << 10
