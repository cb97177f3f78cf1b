"""Regions: parts of a program that one backend takes as a whole."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxopt.ir import Program, Signature


@dataclass(frozen=True)
class Region:
    """Nodes cut out of a program.

    Attributes:
        program: The nodes as a program of their own: tensors in, a flat tuple of tensors out.
        nodes: The nodes in the program that it was cut from.
        inputs: The nodes there that it takes, in the order of its placeholders.
        outputs: The nodes there whose values it gives, in the order of its outputs.
    """

    program: Program
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def whole_region(program: Program) -> Region | None:
    """All that a program computes, as one region; None when it computes nothing."""
    nodes = [node for node in program.nodes if node.op.startswith("call_") or node.op == "get_attr"]
    return cut_region(program, nodes) if nodes else None


def cut_region(program: Program, nodes: Iterable[fx.Node]) -> Region:
    """Copies ``nodes`` into a program of its own; the weights are shared.

    Args:
        program: Where they stand.
        nodes: In order, and convex: no path between two of them leaves the region.
    """
    chosen = tuple(nodes)
    inside = set(chosen)
    inputs = tuple(dict.fromkeys(a for n in chosen for a in n.all_input_nodes if a not in inside))
    outputs = tuple(n for n in chosen if any(u not in inside for u in n.users) and _is_tensor(n))
    graph = fx.Graph()
    copies = {node: _placeholder(graph, node) for node in inputs}
    for node in chosen:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    signature = _flat_signature(len(inputs), len(outputs), program.signature.batch)
    module = fx.GraphModule(program.module, graph).train(program.module.training)
    return Region(Program(module, signature), chosen, inputs, outputs)


def splice(program: Program, region: Region, module: nn.Module, name: str) -> None:
    """Lets ``module`` compute a region of ``program``, in place of its nodes.

    Args:
        program: Changed in place; its metadata stays right.
        region: Cut from this very program.
        module: Takes the region's inputs and returns the tuple of its outputs.
        name: Free qualified name under which the module goes.
    """
    program.module.add_submodule(name, module)
    graph = program.graph
    with graph.inserting_after(region.nodes[-1]):
        call = graph.call_module(name, region.inputs)
    call.meta["val"] = tuple(node.meta["val"] for node in region.outputs)
    for index, node in reversed(list(enumerate(region.outputs))):
        with graph.inserting_after(call):
            item = graph.call_function(operator.getitem, (call, index))
        item.meta.update(node.meta)
        node.replace_all_uses_with(item, delete_user_cb=lambda user: user not in region.nodes)
    for node in reversed(region.nodes):
        graph.erase_node(node)
    with program.edit():  # leaving an edit drops the modules that no node uses any more
        pass


def _placeholder(graph: fx.Graph, node: fx.Node) -> fx.Node:
    copy = graph.placeholder(node.name)
    copy.meta.update(node.meta)
    return copy


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def _flat_signature(inputs: int, outputs: int, batch: bool) -> Signature:
    in_spec = pytree.tree_structure((tuple(range(inputs)), {}))
    return Signature(in_spec, pytree.tree_structure(tuple(range(outputs))), batch)
