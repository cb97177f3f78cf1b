"""Lets Inductor's own cache of compiled graphs take those with packed weights.

What it generates is the same whatever the weights are, which are read from the graph by name
(``torch/_inductor/codecache.py``, ``CompiledFxGraphConstantsWithGm``). But a key is made of all
tensors in the graph, and for those in oneDNN's layout it has none, so that a frozen net is never
found again, and Inductor writes the code anew: efficientnet_b0 took the caller 16 s to build where
the compiler's output was at hand, and takes 9.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch


@contextmanager
def packed_weights_cached() -> Iterator[None]:
    """Inside, what is compiled with packed weights is taken from the cache, or goes there.

    Where this torch has another cache than those that are known, all is compiled as ever. Only one
    thread may be inside.
    """
    from torch._inductor import codecache

    with ExitStack() as stack:
        for owner, name, replacement in _replacements(codecache):
            stack.enter_context(patch.object(owner, name, replacement))
        yield


def _replacements(codecache: Any) -> list[tuple[Any, str, Any]]:
    pickler = getattr(codecache, "FxGraphCachePickler", None)
    cache = getattr(codecache, "FxGraphCache", None)
    reduce_tensor = getattr(pickler, "_reduce_tensor", None)
    shape_env = getattr(cache, "_get_shape_env", None)
    if reduce_tensor is None or shape_env is None or not hasattr(codecache, "is_frozen_param"):
        return []

    def reduced(self: Any, tensor: torch.Tensor) -> Any:
        if not _is_packed(codecache, tensor):
            return reduce_tensor(self, tensor)
        return str, (f"packed {tuple(tensor.shape)} {tensor.dtype}",)

    def shapes(_: Any) -> Any:
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        return shape_env() or ShapeEnv()  # it is asked for guards, and fixed sizes have none

    found = [(pickler, "_reduce_tensor", reduced), (cache, "_get_shape_env", classmethod(shapes))]
    validator = getattr(codecache, "CacheabilityValidator", None)  # from torch 2.13 on
    check = getattr(validator, "check_tensor", None)
    if check is not None:

        def checked(tensor: torch.Tensor) -> None:
            if not _is_packed(codecache, tensor):
                check(tensor)

        found.append((validator, "check_tensor", staticmethod(checked)))
    return found


def _is_packed(codecache: Any, tensor: torch.Tensor) -> bool:
    """Whether it is a weight in oneDNN's layout that is read from the graph, not written down."""
    return tensor.is_mkldnn and codecache.is_frozen_param(tensor)
