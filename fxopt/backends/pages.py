"""Large memory pages for what lowered code reads on each call.

Weights are read once per call, page by page, and with pages of 4 KiB a part of the time goes into
looking up where those are. Linux can use pages of 2 MiB for memory that asks for them
(https://docs.kernel.org/admin-guide/mm/transhuge.html). Runtimes allocate their packed weights
themselves, so what they have allocated while they compiled is asked for afterwards. Measured on
OpenVINO: 3 to 4 % of the latency of mobilenet_v3_large in float32, resnet50 and vit_b_16 in
bfloat16. Asking takes 3 to 4 ms a MiB, and gains nothing where each weight is used many times in a
call (resnet50 and convnext_tiny at batch 8).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fxopt.backends.smaps import Mapping, advise, mappings
from fxopt.cost import example_size, multiply_adds
from fxopt.ir import Program

_PAGE = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # of <linux/mman.h>; the second since Linux 6.1

# What is reserved and hardly used, such as the stacks of threads, would only fill up memory.
_LEAST_RESIDENT = 0.75

# With so many bytes of weights, asking takes a fifth of a second; with so many multiply-adds for
# each weight, looking up where it is takes half a percent of the time.
_MANY_BYTES, _MANY_USES = 64 << 20, 600


def pay(program: Program, inputs: Sequence[torch.Tensor]) -> bool:
    """Whether large pages may be worth asking for.

    Args:
        program: What is lowered.
        inputs: Of any batch size.
    """
    if program.weight_bytes() < _MANY_BYTES:
        return True
    tensors = [n for n in program.inputs if isinstance(n.meta.get("val"), torch.Tensor)]
    size: float = sum(tensor.numel() for tensor in inputs) / max(1, sum(map(example_size, tensors)))
    weights: int = sum(tensor.numel() for tensor in program.module.state_dict().values())
    used = size * sum(multiply_adds(program).values())
    return used < _MANY_USES * weights


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
