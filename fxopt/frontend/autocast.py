"""What autocast casts, written out: a graph computes the same outside of it.

Which arguments of which operator autocast casts is torch's to know, and differs by device and
version. So each call is tried on tensors without data, once inside and once outside of autocast,
and the casts that only the first one does are taken.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode

from fxopt.errors import CaptureError
from fxopt.frontend.source import source_of


@dataclass(frozen=True)
class Autocast:
    """A block of ``torch.autocast`` that is enabled.

    Attributes:
        device: Type of the device on which it casts.
        dtype: What it casts to; None for the device's default.
    """

    device: str
    dtype: torch.dtype | None = None

    def casts_of(self, node: Node) -> dict[Node, torch.dtype]:
        """The arguments of a call that autocast casts, and to what.

        Args:
            node: Of an exported program, where ``meta["val"]`` of all arguments has no data.

        Raises:
            CaptureError: The call does not compute the same with its arguments cast.
        """
        inside = _tried(node, {}, torch.autocast(self.device, self.dtype, cache_enabled=False))
        own = _own_casts(node)
        extra = [cast for cast in inside.casts if cast not in own]
        # all arguments are cast to one dtype, before the operator casts any itself
        cast = {value for value, dtype in extra if dtype == extra[0][1]}
        found = {n: extra[0][1] for n in node.all_input_nodes if id(n.meta.get("val")) in cast}
        if _tried(node, found, contextlib.nullcontext()).dtypes != inside.dtypes:
            raise CaptureError(
                f"{node.target} under autocast cannot be captured: it does more than to cast",
                where=source_of(node),
            )
        return found


_Casts = list[tuple[int, torch.dtype]]
"""What was cast to what, in order; tensors by their identity."""


@dataclass
class _Trial:
    casts: _Casts
    dtypes: list[torch.dtype]


def _own_casts(node: Node) -> _Casts:
    """The casts of arguments that are a part of what a node calls."""
    try:
        return _tried(node, {}, contextlib.nullcontext()).casts
    except RuntimeError:  # dtypes that go together under autocast alone, whose casts come first
        return []


def _tried(
    node: Node, casts: dict[Node, torch.dtype], block: contextlib.AbstractContextManager[Any]
) -> _Trial:
    """Calls what a node calls, on its arguments as they are or cast."""

    def value(item: Any) -> Any:
        val = item.meta["val"] if isinstance(item, Node) else item
        return val.to(casts[item]) if item in casts else val

    args, kwargs = map_aggregate((node.args, dict(node.kwargs)), value)
    with torch.no_grad(), block, _Recorded() as recorded:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    tensors = [leaf for leaf in torch.utils._pytree.tree_leaves(result) if hasattr(leaf, "dtype")]
    return _Trial(recorded.casts, [tensor.dtype for tensor in tensors])


class _Recorded(TorchDispatchMode):
    """Notes the casts."""

    def __init__(self) -> None:
        super().__init__()
        self.casts: _Casts = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dtype = (kwargs or {}).get("dtype")
        if func is torch.ops.aten._to_copy.default and dtype is not None:
            self.casts.append((id(args[0]), dtype))
        return func(*args, **(kwargs or {}))
