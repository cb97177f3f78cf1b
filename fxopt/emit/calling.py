"""Gives a flat graph the calling convention of the user's model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from fxopt.ir import Signature

_CONTAINERS = (tuple, list, dict)


def adopt_signature(graph: fx.Graph, signature: Signature, names: Sequence[str]) -> None:
    """Lets ``graph`` be called as the user's model is.

    Where inputs are plain tensors and outputs plain containers, the graph says so itself, which
    costs nothing at a call. Otherwise generated code flattens and unflattens them.

    Args:
        graph: A flat one; changed in place.
        signature: The user's nesting.
        names: Names of the positional arguments of the user's ``forward``.
    """
    arguments = _argument_names(signature, names)
    outputs = pytree.tree_unflatten(list(graph.output_node().args[0]), signature.out_spec)  # type: ignore[arg-type]
    if _takes_leaves(signature) and _is_plain(outputs):
        _name_placeholders(graph, arguments)
        graph.output_node().args = (outputs,)
    else:
        info = _PyTreeInfo(arguments, signature.in_spec, signature.out_spec)
        graph.set_codegen(_PyTreeCodeGen(info))


def _argument_names(signature: Signature, names: Sequence[str]) -> list[str]:
    positional = signature.in_spec.child(0).num_children
    given = list(names[:positional])
    given += [f"arg_{index}" for index in range(len(given), positional)]
    return given + [str(name) for name in signature.in_spec.child(1).context or []]


def _takes_leaves(signature: Signature) -> bool:
    args, kwargs = signature.in_spec.child(0), signature.in_spec.child(1)
    children = [spec.child(i) for spec in (args, kwargs) for i in range(spec.num_children)]
    return all(child.is_leaf() for child in children)


def _is_plain(outputs: Any) -> bool:
    if type(outputs) in _CONTAINERS:
        items = outputs.values() if isinstance(outputs, dict) else outputs
        return all(_is_plain(item) for item in items)
    return outputs is None or isinstance(outputs, (fx.Node, int, float, bool, str))


def _name_placeholders(graph: fx.Graph, names: Sequence[str]) -> None:
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(placeholders, names, strict=True):
        node.target = name
