"""Weights leave memory once there is code that holds its own.

Runtimes pack weights in a way of their own, and a lowered module keeps the program as well, for
training and for rare shapes. Where the program's weights lie in a file, as those of a loaded model
do, the system can read them from there again, so their memory is given back.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from fxopt.backends.smaps import advise, mappings

_MADV_DONTNEED = 4  # of <linux/mman.h>


def give_back(tensors: Iterable[torch.Tensor]) -> None:
    """Gives the memory of tensors that lie unchanged in files back to the system.

    What reads them later finds them as they were. Tensors that lie elsewhere, or of which anything
    was written to since they were made, stay.

    Args:
        tensors: Such as ``paged`` makes, which are not needed for some time, and which nothing
            writes to meanwhile.
    """
    starts = {t.untyped_storage().data_ptr() for t in tensors if t.device.type == "cpu"}
    for mapping in mappings():
        held = any(mapping.start <= start < mapping.end for start in starts)
        if held and mapping.is_file and not mapping.anonymous:
            advise(mapping.start, mapping.end, _MADV_DONTNEED)
