"""What Inductor needs besides torch: a C++ compiler and Python's headers."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path


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
