"""Regions: parts of a program that one backend takes as a whole."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxopt.backends.boundary import (
    constant_of,
    find_size,
    is_free,
    is_operation,
    is_tensor,
    is_tuple,
    needed_outside,
    settle,
    size_of_input,
)
from fxopt.errors import BackendError
from fxopt.ir import Program, Signature


@dataclass(frozen=True)
class Region:
    """Nodes cut out of a program.

    Attributes:
        program: The nodes as a program of their own: tensors in, a flat tuple of tensors out.
        nodes: The operations in the program that it was cut from. Attributes and sizes that they
            take are read and computed inside again, and are not among them.
        inputs: The nodes there that it takes, in the order of its placeholders.
        outputs: The nodes there whose values it gives, in the order of its outputs.
    """

    program: Program
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


def whole_region(program: Program) -> Region | None:
    """All that a program computes, as one region; None when it computes nothing."""
    nodes = [node for node in program.nodes if is_operation(node)]
    region = cut_region(program, nodes) if nodes else None
    return region if region is not None and region.outputs else None


def cut_region(program: Program, nodes: Iterable[fx.Node]) -> Region:
    """Copies ``nodes`` into a program of its own; the weights are shared.

    Args:
        program: Where they stand. It is not changed.
        nodes: A convex set: no path between two of them leaves it. Items of a tuple are added or
            left out, so that they stay with what makes the tuple.

    Raises:
        BackendError: The set is not convex, or a tuple would have to cross its boundary.
    """
    chosen = settle(list(nodes))
    cut = _Cut(chosen)
    outputs = tuple(node for node in chosen if _is_output(node, cut.inside))
    cut.graph.output(tuple(cut.copies[node] for node in outputs))
    _require_convex(program.graph, cut)
    signature = _flat_signature(len(cut.inputs), len(outputs), program.signature.batch)
    module = fx.GraphModule(program.module, cut.graph).train(program.module.training)
    return Region(Program(module, signature), chosen, tuple(cut.inputs), outputs)


def splice(program: Program, region: Region, module: nn.Module, name: str) -> None:
    """Lets ``module`` compute a region of ``program``, in place of its nodes.

    Args:
        program: Changed in place, its metadata stays right. What its module shares with others
            is left alone: it gets a new one, without what only the region has used.
        region: Cut from this very program.
        module: Takes the region's inputs and returns the tuple of its outputs.
        name: Free qualified name under which the module goes.
    """
    program.module.add_submodule(name, module)
    graph, inside = program.graph, frozenset(region.nodes)
    _reroute_sizes(graph)
    anchor = max((*region.nodes, *region.inputs))
    late = [
        node
        for node in _dependents(graph, inside)
        if node < anchor and (needed_outside(node, inside) or not is_free(node))
    ]
    with graph.inserting_after(anchor):
        last = call = graph.call_module(name, region.inputs)
    call.meta["val"] = tuple(node.meta["val"] for node in region.outputs)
    for index, node in enumerate(region.outputs):
        with graph.inserting_after(last):
            last = graph.call_function(operator.getitem, (call, index))
        last.meta.update(node.meta)
        node.replace_all_uses_with(last, delete_user_cb=lambda user: user not in inside)
    for node in late:
        last.append(node)  # moves it
        last = node
    _erase(graph, inside)
    program.module = _without_unused(program.module)


class _Cut:
    """The graph of a region.

    Args:
        chosen: The region's nodes in order, in the program that it is cut from.
    """

    def __init__(self, chosen: tuple[fx.Node, ...]) -> None:
        self.inside = frozenset(chosen)
        self.graph = fx.Graph()
        self.inputs: list[fx.Node] = []
        self.copies: dict[fx.Node, Any] = {}
        for node in chosen:
            self._take_inputs(node)  # all of them first: sizes are read from them
        for node in chosen:
            self._copy(node)

    def _take_inputs(self, node: fx.Node) -> None:
        for arg in node.all_input_nodes:
            if arg not in self.copies and arg not in self.inside and not is_free(arg):
                self._take(arg)

    def _take(self, node: fx.Node) -> None:
        """Makes a node outside an input, or a constant where it is one."""
        if is_tensor(node):
            self.copies[node] = self._placeholder(node)
            self.inputs.append(node)
            return
        try:
            self.copies[node] = constant_of(node)
        except LookupError:
            kind = "a tuple" if is_tuple(node) else "no tensor"
            raise BackendError(f"%{node.name} is {kind}, and cannot enter a region") from None

    def _placeholder(self, node: fx.Node) -> fx.Node:
        last = self.copies[self.inputs[-1]] if self.inputs else None
        with self.graph.inserting_after(last) if last else self.graph.inserting_before(None):
            copy = self.graph.placeholder(node.name)
        copy.meta.update(node.meta)
        return copy

    def _copy(self, node: fx.Node) -> None:
        """Copies a node, behind the free ones that it takes."""
        for arg in node.all_input_nodes:
            if arg not in self.copies:
                self._do_again(arg)
        self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)

    def _do_again(self, node: fx.Node) -> None:
        """What is free, in the region: a constant, a size of an input, or else computed anew."""
        try:
            self.copies[node] = constant_of(node)
            return
        except LookupError:
            place = find_size(node, self.inputs)
        if place is None:
            self._take_inputs(node)
            self._copy(node)
            return
        arguments = (self.copies[place[0]], place[1])
        self.copies[node] = self.graph.call_function(torch.ops.aten.sym_size.int, arguments)
        self.copies[node].meta.update(node.meta)


def _is_output(node: fx.Node, inside: Collection[fx.Node]) -> bool:
    users = [user for user in node.users if user not in inside]
    needed = any(_is_read(user, inside) for user in users)
    if needed and is_tuple(node):
        raise BackendError(f"%{node.name} is a tuple, and cannot leave a region")
    return needed and is_tensor(node)


def _is_read(user: fx.Node, inside: Collection[fx.Node]) -> bool:
    """Whether a user outside of a region needs what it takes from inside."""
    if not is_free(user):
        return True
    return needed_outside(user, inside) and size_of_input(user) is None


def _require_convex(graph: fx.Graph, cut: _Cut) -> None:
    after = set(_dependents(graph, cut.inside))
    between = [node.name for node in cut.inputs if node in after]
    if between:
        raise BackendError(
            f"%{between[0]} is computed from the region and is an input of it",
            hint="a region is a convex set: no path between two of its nodes leaves it",
        )


def _dependents(graph: fx.Graph, inside: frozenset[fx.Node]) -> Iterator[fx.Node]:
    """The nodes outside that are computed from a region, in order.

    A size that an input of the program has, too, does not count.
    """
    found = set(inside)
    for node in graph.nodes:
        if node in inside or found.isdisjoint(node.all_input_nodes):
            continue
        if size_of_input(node) is None:
            found.add(node)
            yield node


def _reroute_sizes(graph: fx.Graph) -> None:
    """Lets sizes be read from an input of the program, not from inside a region, where they can."""
    for node in graph.nodes:
        place = size_of_input(node)
        if place is not None:
            node.target, node.args, node.kwargs = torch.ops.aten.sym_size.int, place, {}


def _erase(graph: fx.Graph, inside: frozenset[fx.Node]) -> None:
    """Erases a region, and the attributes and sizes that are left without users."""
    for node in reversed(list(graph.nodes)):
        if node in inside or (is_free(node) and not node.users):
            graph.erase_node(node)
    graph.lint()


def _without_unused(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph and modules, but those alone that the graph uses.

    Nothing is taken out of ``module``, since its layers may be those of other programs, too.
    """
    used: fx.GraphModule = fx.GraphModule(module, module.graph)
    used.meta.update(module.meta)
    return used.train(module.training)


def _flat_signature(inputs: int, outputs: int, batch: bool) -> Signature:
    in_spec = pytree.tree_structure((tuple(range(inputs)), {}))
    return Signature(in_spec, pytree.tree_structure(tuple(range(outputs))), batch)
