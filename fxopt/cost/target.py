"""The machine that a model is optimized for."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from fxopt.errors import InputError

_CPU_FEATURES = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_vpopcntdq", "amx_int8",
    "amx_bf16",
)  # fmt: skip
_WIDE_SUMS = {"avx_vnni", "avx512_vnni", "amx_int8"}


@dataclass(frozen=True)
class Target:
    """A device, and what lowering must know of it.

    Attributes:
        name: ``cpu`` or ``cuda``.
        device: The torch device that runs the optimized module.
        threads: Threads that one call may use.
        features: Instruction set extensions, as the operating system names them.
        chip: The chip's name, for reports.
    """

    name: str
    device: torch.device
    threads: int
    features: tuple[str, ...] = ()
    chip: str = ""

    @property
    def saturates(self) -> bool:
        """Whether kernels add products of 8 bits in pairs of 16, which overflows.

        So do those for x86 without VNNI, unless one factor has 7 bits at most: 2 * 255 * 63 fits,
        2 * 255 * 127 does not (``vpmaddubsw`` in Intel's manual).
        """
        return "avx2" in self.features and not _WIDE_SUMS & set(self.features)

    def __str__(self) -> str:
        parts = [self.name, f"{self.threads} threads", *self.features[-1:]]
        return ", ".join(parts)


def find_target(name: str) -> Target:
    """The target called ``name`` on this machine.

    Raises:
        InputError: There is no such target, or this machine lacks it.
    """
    if name == "cpu":
        return _cpu()
    if name == "cuda":
        return _cuda()
    raise InputError(f"unknown target {name!r}", hint="the targets are 'cpu' and 'cuda'")


def _cpu() -> Target:
    info = _cpuinfo()
    flags = set(info.get("flags", "").split())
    features = tuple(feature for feature in _CPU_FEATURES if feature in flags)
    chip = info.get("model name") or platform.processor() or platform.machine()
    return Target("cpu", torch.device("cpu"), torch.get_num_threads(), features, chip)


def _cuda() -> Target:
    if not torch.cuda.is_available():
        raise InputError(
            "target 'cuda' needs a GPU, and torch finds none on this machine",
            hint="use target='cpu', or check that `torch.cuda.is_available()` is true",
        )
    properties = torch.cuda.get_device_properties(0)
    sm = f"sm_{properties.major}{properties.minor}"
    return Target("cuda", torch.device("cuda"), torch.get_num_threads(), (sm,), properties.name)


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
