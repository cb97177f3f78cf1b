"""Fake values for nodes that a rewrite adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate


def value_of(argument: Any) -> Any:
    """Replaces every node in a nested argument by its fake value."""
    return map_aggregate(argument, lambda a: a.meta.get("val") if isinstance(a, Node) else a)


def infer(target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Computes the fake value of a call from the fake values of its arguments."""
    values, named = value_of(args), value_of(kwargs)
    flat = torch.utils._pytree.tree_leaves((values, named))
    mode = next((v.fake_mode for v in flat if isinstance(v, FakeTensor)), None)
    if mode is None:
        return target(*values, **named)
    with mode, torch.no_grad():
        return target(*values, **named)


def emit(
    graph: Graph,
    like: Node,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
) -> Node:
    """Adds a call at the insertion point, with the provenance of another node."""
    node = graph.call_function(target, args, kwargs or {})
    node.meta = {**like.meta, "val": infer(target, args, kwargs or {})}
    return node


def memory_of(node: Node) -> set[int]:
    """Identities for the memory behind a node's fake tensors."""
    leaves = torch.utils._pytree.tree_leaves(node.meta.get("val"))
    return {v.untyped_storage()._cdata for v in leaves if isinstance(v, torch.Tensor)}
