"""What Inductor needs besides torch: a C++ compiler and Python's headers."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

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
    command = [cpp_compiler(), *flags, "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        return bool(sets) and subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False
