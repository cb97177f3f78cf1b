"""Computes once what depends on constants alone."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import fx


def fold_constants(module: fx.GraphModule) -> None:
    """Replaces nodes that compute from constants by their results.

    Args:
        module: A functional graph, but for what it does to values that depend on inputs; it is
            changed in place and must be recompiled.
    """
    known: dict[fx.Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            known[node] = attrgetter(str(node.target))(module)
        elif _is_constant(node, known):
            args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            known[node] = node.target(*args, **kwargs)
    for node, value in known.items():
        wanted = any(user not in known for user in node.users)
        if node.op == "call_function" and wanted and isinstance(value, torch.Tensor):
            _replace(module, node, value)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()


def _is_constant(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    return all(source in known for source in node.all_input_nodes)


def _replace(module: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    name = f"folded_{node.name}"
    module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    node.replace_all_uses_with(constant)
