"""Large memory pages for what lowered code reads on each call.

Weights are read once per call, page by page, and with pages of 4 KiB a part of the time goes into
looking up where those are. Linux can use pages of 2 MiB for memory that asks for them
(https://docs.kernel.org/admin-guide/mm/transhuge.html). Runtimes allocate their packed weights
themselves, so what they have allocated while they compiled is asked for afterwards. Measured on
OpenVINO: 3 to 4 % of the latency of mobilenet_v3_large in float32, resnet50 and vit_b_16 in
bfloat16.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fxopt.backends.smaps import Mapping, advise, mappings

_PAGE = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # of <linux/mman.h>; the second since Linux 6.1

# What is reserved and hardly used, such as the stacks of threads, would only fill up memory.
_LEAST_RESIDENT = 0.75


@contextmanager
def large_pages() -> Iterator[None]:
    """Asks for large pages for memory that is allocated inside and still in use at the end.

    It does nothing where the system has none to give; what memory holds is never affected.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    before = _anonymous()
    yield
    for mapping in _anonymous():
        for start, end in _added(mapping, before):
            _enlarge(start, end)


def _anonymous() -> list[Mapping]:
    """Private memory that belongs to no file."""
    return [m for m in mappings() if m.mode == "rw-p" and m.name in ("", "[heap]")]


def _added(mapping: Mapping, before: Sequence[Mapping]) -> list[tuple[int, int]]:
    """The parts of a mapping that were in none before, if most of them is in memory.

    The system joins neighbours, so that what is new can be a small part of a mapping, and the
    rest may be all that a process has.
    """
    known = [m for m in before if m.start < mapping.end and mapping.start < m.end]
    bounds = [bound for m in sorted(known) for bound in (m.start, m.end)]
    edges = [mapping.start, *bounds, mapping.end]
    parts = [part for part in zip(edges[::2], edges[1::2], strict=True) if part[0] < part[1]]
    resident = mapping.resident - sum(m.resident for m in known)
    size = sum(end - start for start, end in parts)
    return parts if resident >= _LEAST_RESIDENT * size else []


def _enlarge(start: int, end: int) -> None:
    start, end = -(-start // _PAGE) * _PAGE, end // _PAGE * _PAGE
    if start < end:
        for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
            advise(start, end, advice)
