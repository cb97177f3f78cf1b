"""Large memory pages for what lowered code reads on each call.

Weights are read once per call, page by page, and with pages of 4 KiB a part of the time goes into
looking up where those are. Linux can use pages of 2 MiB for memory that asks for them
(https://docs.kernel.org/admin-guide/mm/transhuge.html). Runtimes allocate their packed weights
themselves, so what they have allocated while they compiled is asked for afterwards. Measured on
OpenVINO: 3 to 4 % of the latency of mobilenet_v3_large in float32, resnet50 and vit_b_16 in
bfloat16.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_PAGE = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # of <linux/mman.h>; the second since Linux 6.1

# What is reserved and hardly used, such as the stacks of threads, would only fill up memory.
_LEAST_RESIDENT = 0.75

_HEADER = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ *(.*)$")


class _Region(NamedTuple):
    """A range of addresses, and how many bytes of it are in memory."""

    start: int
    end: int
    resident: int


@contextmanager
def large_pages() -> Iterator[None]:
    """Asks for large pages for memory that is allocated inside and still in use at the end.

    It does nothing where the system has none to give; what memory holds is never affected.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    before = {region.start: region for region in _anonymous()}
    yield
    for region in _anonymous():
        known = before.get(region.start)
        if known is None or region.end > known.end:
            _enlarge(region)


def _anonymous() -> list[_Region]:
    """Private memory that belongs to no file, in pieces of a large page at least."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return []
    found: list[_Region] = []
    wanted, start, end = False, 0, 0
    for line in lines:
        if header := _HEADER.match(line):
            start, end = int(header[1], 16), int(header[2], 16)
            wanted = header[3] == "rw-p" and header[4] in ("", "[heap]") and end - start >= _PAGE
        elif wanted and line.startswith("Rss:"):
            found.append(_Region(start, end, int(line.split()[1]) << 10))
    return found


def _enlarge(region: _Region) -> None:
    start, end = -(-region.start // _PAGE) * _PAGE, region.end // _PAGE * _PAGE
    if region.resident < _LEAST_RESIDENT * (region.end - region.start) or end <= start:
        return
    with suppress(OSError, AttributeError):  # no such C library
        madvise = ctypes.CDLL(None).madvise
        for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
