"""Operators that write over an input: they may have it only where nobody else needs it."""

from __future__ import annotations

import torch
from torch import fx

from fxopt_inductor.lowp.moves import moved
from fxopt_inductor.lowp.operators import find_operator

aten = torch.ops.aten

# The argument of each operator that it writes over.
_ADDENDS = {("qconv2d_pointwise", "binary"): 6, ("qlinear_pointwise", "binary"): 6}


def protect_addends(graph: fx.Graph) -> None:
    """Copies what an operator writes over, if it is an input or is read otherwise or later.

    Args:
        graph: Functional but for those operators; it is changed in place.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    positions = {find_operator(*name): index for name, index in _ADDENDS.items()}
    for node in list(graph.nodes):
        position = positions.get(node.target)
        if position is None:
            continue
        addend = node.args[position]
        assert isinstance(addend, fx.Node)
        family = _sharing(addend)
        read = {arg for index, arg in enumerate(node.args) if index != position}
        last = max(order[user] for member in family for user in member.users)
        given = any(member.op != "call_function" for member in family)
        if given or last > order[node] or family & read:
            with graph.inserting_before(node):
                copy = graph.call_function(aten.clone.default, (addend,))
            node.update_arg(position, copy)
            order[copy] = order[node]


def compiler_sees_addends() -> None:
    """Lets torch compile those operators: it has to know what they write over.

    For that it wraps them in another one, which it declares only for usual tensors; packed weights
    are tensors of oneDNN's own kind.
    """
    from torch._higher_order_ops.auto_functionalize import auto_functionalized_v2

    auto_functionalized_v2.fallthrough(torch._C.DispatchKey.AutogradOther)


def _sharing(node: fx.Node) -> set[fx.Node]:
    """The nodes that may share memory with a node, itself among them."""
    family, waiting = {node}, [node]
    while waiting:
        member = waiting.pop()
        sources = [arg for arg in member.all_input_nodes if _may_view(member)]
        found = {*sources, *filter(_may_view, member.users)} - family
        family |= found
        waiting += found
    return family


def _may_view(node: fx.Node) -> bool:
    return node.op == "call_function" and moved(node) is not None
