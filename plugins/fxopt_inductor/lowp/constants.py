"""Constants of an exported module."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import fx


def constant(module: fx.GraphModule, node: Any) -> torch.Tensor | None:
    """The tensor that a ``get_attr`` node reads; None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    value = attrgetter(str(node.target))(module)
    return value.detach() if isinstance(value, torch.Tensor) else None


def owner_name(node: fx.Node) -> str:
    """The qualified name of the layer whose tensor a ``get_attr`` node reads."""
    return str(node.target).removeprefix("module.").rpartition(".")[0]
