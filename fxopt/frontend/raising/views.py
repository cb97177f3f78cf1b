"""Views that need memory in order become operations that copy where a view is impossible."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from fxopt.frontend.raising.context import Context

aten = torch.ops.aten

RELAXED: dict[Any, Any] = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.view_as.default: aten.reshape_as.default,
}


def relax_view(context: Context, node: Node) -> None:
    """Turns a view into a reshape, its equal in a functional graph.

    Export drops ``contiguous`` where the example was in order already. What remains would fail
    when the user calls the module with another layout, channels last for one.
    """
    node.target = RELAXED[node.target]
