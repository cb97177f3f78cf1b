"""Outputs that are compared are computed in full precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

backends: Any = torch.backends  # its stubs lack the newer names

# What may round float32 values to TF32 or bfloat16 first. TF32 is what convolutions on GPUs do
# unless told otherwise, and one layer is off by 1e-4 then, as much as an exact pass may be.
_KERNELS: tuple[Any, ...] = (
    backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul,
    backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul,
)  # fmt: skip


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 values round to float32 alone inside, whatever the user has allowed.

    Two programs that mean the same differ by rounding only then. What is timed is not to be run
    inside.
    """
    # torch has two sets of names for these, and those who read the older ones get an error where
    # only the newer ones were set; so both are, inside and afterwards
    products = _older(torch.get_float32_matmul_precision)
    convolutions = _older(lambda: backends.cudnn.allow_tf32)
    kernels = [kernel.fp32_precision for kernel in _KERNELS]
    try:
        _set("highest", False, ["ieee"] * len(_KERNELS))
        yield
    finally:
        _set(products, convolutions, kernels)


def _older(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:  # the user has set the newer ones alone
        return None


def _set(products: str | None, convolutions: bool | None, kernels: list[str]) -> None:
    if products is not None:
        torch.set_float32_matmul_precision(products)
    if convolutions is not None:
        backends.cudnn.allow_tf32 = convolutions
    for kernel, precision in zip(_KERNELS, kernels, strict=True):
        kernel.fp32_precision = precision
