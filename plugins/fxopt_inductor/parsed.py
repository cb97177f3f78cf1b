"""Lets Inductor parse each of its own text templates once.

It parses the one that it needs for each product anew: 799 times for the 35 int8 layers of a
mobilenet_v2 that have products of its own, which took 4 of 42 seconds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


@contextmanager
def templates_parsed_once() -> Iterator[None]:
    """Inside, a text that was parsed already is not parsed again.

    Where this torch parses in another way, all is as ever. Only one thread may be inside.
    """
    from torch._inductor.codegen.common import KernelTemplate

    parse = getattr(KernelTemplate, "_template_from_string", None)
    if parse is None:
        yield
        return
    with patch.object(KernelTemplate, "_template_from_string", staticmethod(_once(parse))):
        yield


@functools.cache
def _once(parse: Any) -> Any:
    """The same for all builds of a process: texts are few, and rendering does not change them."""
    return functools.cache(parse)
