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
from collections.abc import Iterator
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
    before = {mapping.start: mapping for mapping in _anonymous()}
    yield
    for mapping in _anonymous():
        known = before.get(mapping.start)
        if known is None or mapping.end > known.end:
            _enlarge(mapping)


def _anonymous() -> list[Mapping]:
    """Private memory that belongs to no file, in pieces of a large page at least."""
    return [
        mapping
        for mapping in mappings()
        if mapping.mode == "rw-p"
        and mapping.name in ("", "[heap]")
        and mapping.end - mapping.start >= _PAGE
    ]


def _enlarge(mapping: Mapping) -> None:
    start, end = -(-mapping.start // _PAGE) * _PAGE, mapping.end // _PAGE * _PAGE
    if mapping.resident < _LEAST_RESIDENT * (mapping.end - mapping.start) or end <= start:
        return
    for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
        advise(start, end, advice)
