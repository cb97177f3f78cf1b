"""What Inductor needs besides torch: a C++ compiler and Python's headers."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch


def missing_toolchain() -> str | None:
    """Which part of the toolchain is not there, and how to get it; None when all is."""
    compiler = cpp_compiler()
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler!r}; install one, or name it in CXX"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"{header} is missing; install Python's headers (python3-dev or python3-devel)"
    return None


def cpp_compiler() -> str:
    """The compiler that Inductor calls."""
    defaults = {"darwin": "clang++", "win32": "cl"}
    return os.environ.get("CXX", defaults.get(sys.platform, "g++"))


@functools.cache
def knows_instructions() -> bool:
    """Whether the compiler has all vector instructions of this CPU that Inductor may use.

    Inductor finds that out by building and loading a program for each set, which takes ten seconds
    on a machine that is new to it. Which sets the CPU and torch have is known without.
    """
    try:
        from torch._inductor.cpu_vec_isa import supported_vec_isa_list, x86_isa_checker
    except ImportError:  # they are not public
        return False
    present = set(x86_isa_checker())
    richest = "AVX512" if "avx512" in present else "AVX2"
    if torch.backends.cpu.get_cpu_capability() != richest:  # torch itself may be built for less
        return False
    sets = [isa for isa in supported_vec_isa_list if set(str(isa).split()) <= present]
    flags = [flag for isa in sets for flag in isa.build_arch_flags().split()]
    return bool(sets) and _takes(cpp_compiler(), *flags)


@contextmanager
def instructions_asked_for() -> Iterator[None]:
    """Inside, the compiler is asked whether it has the instructions that Inductor would try.

    Those of a CPU with VNNI, bfloat16 and AMX are tried even where it is told that the compiler has
    all: six programs are built and loaded, which takes three seconds in each new cache. Which of
    them the CPU has is asked for before that, and a compiler that takes the flag of a set has all
    that is in it. Only one thread may be inside.
    """
    if not knows_instructions():
        yield
        return
    from torch._inductor.cpu_vec_isa import VecISA

    def check_build(isa: VecISA, code: str) -> bool:
        return _takes(cpp_compiler(), *isa.build_arch_flags().split())

    with patch.object(VecISA, "check_build", check_build):
        yield


@functools.cache
def _takes(compiler: str, *flags: str) -> bool:
    command = [compiler, *flags, "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
