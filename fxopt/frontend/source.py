"""Where in the user's code a node, or an error, came from."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.fx import Node

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n\s+(?P<code>.*))?')
_TORCH = os.path.dirname(torch.__file__) + os.sep
_FXOPT = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = os.path.dirname(os.__file__) + os.sep


class Frame(NamedTuple):
    """One line of code: its file, its number and its text."""

    file: str
    line: int
    code: str

    @property
    def foreign(self) -> bool:
        """Whether the line is the user's (or a model zoo's) rather than torch's or ours."""
        if "site-packages" not in self.file and self.file.startswith(_STDLIB):
            return False
        return not self.file.startswith((_TORCH, _FXOPT, "<"))

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.code}".rstrip()


def source_of(node: Node) -> str | None:
    """The user's line that a node was traced from, as "path/file.py:123 code"."""
    text = node.meta.get("stack_trace")
    if not text:
        return None
    found = (Frame(m["file"], int(m["line"]), m["code"] or "") for m in _FRAME.finditer(text))
    frame = _innermost(found)
    return None if frame is None else str(frame)


def blame(error: BaseException) -> str | None:
    """The user's line that an exception came through, as "path/file.py:123 code"."""
    stack = traceback.extract_tb(error.__traceback__)
    frames = [Frame(f.filename, f.lineno or 0, f.line or "") for f in stack]
    foreign = [frame for frame in frames if frame.foreign]
    return str(foreign[-1]) if foreign else None


def module_path(node: Node) -> str:
    """Qualified name of the innermost module that the node was traced in ("" for the root)."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    # a module that is called again is traced as "name@1"
    return re.sub(r"@\d+", "", entries[-1][0]) if entries else ""


def _innermost(frames: Iterable[Frame]) -> Frame | None:
    """The last frame outside torch, or the very last one when all are torch's."""
    listed = list(frames)
    foreign = [frame for frame in listed if frame.foreign]
    chosen = foreign or listed
    return chosen[-1] if chosen else None
