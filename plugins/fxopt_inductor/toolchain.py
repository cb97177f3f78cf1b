"""What Inductor needs besides torch: a C++ compiler and Python's headers."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from fxopt.plugin import keep_files

_ANSWER = "answer.json"


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


@contextmanager
def instructions_assembled() -> Iterator[None]:
    """Inside, the instructions that Inductor tries are assembled, and no program is built of them.

    Those of a CPU with VNNI, bfloat16 and AMX are tried even where it is told that the compiler has
    all: six programs are linked with torch, and loaded in a process each. Whether the CPU has them
    is asked for before that. Where this torch tries in another way, all is as ever. Only one thread
    may be inside.
    """
    from torch._inductor import cpu_vec_isa

    tries = getattr(cpu_vec_isa, "VecISA", None)
    if not hasattr(tries, "check_build") or not knows_instructions():
        yield
        return

    def check_build(isa: Any, code: str) -> bool:
        return _assembles(code, cpp_compiler(), *isa.build_arch_flags().split())

    with patch.object(tries, "check_build", check_build):
        yield


@functools.cache
def _assembles(code: str, compiler: str, *flags: str) -> bool:
    """Whether the compiler makes an object of a text; what a worker has found out is taken over."""
    said = repr((code, compiler, flags))
    key = f"inductor-assembles-{hashlib.sha256(said.encode()).hexdigest()}"

    def write(folder: Path) -> None:
        (folder / _ANSWER).write_text(json.dumps(_tried(code, compiler, *flags)))

    kept = keep_files(key, write)
    if kept is None:
        return _tried(code, compiler, *flags)
    return bool(json.loads((kept / _ANSWER).read_text()))


def _tried(code: str, compiler: str, *flags: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="fxopt_inductor_") as folder:
        command = [compiler, *flags, "-c", "-x", "c++", "-", "-o", f"{folder}/tried.o"]
        try:
            return subprocess.run(command, input=code.encode(), capture_output=True).returncode == 0
        except OSError:
            return False
