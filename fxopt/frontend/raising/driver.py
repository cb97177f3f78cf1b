"""Raises a functional graph to module form and builds its GraphModule."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from fxopt.frontend.raising.context import Context
from fxopt.frontend.raising.registry import RAISERS
from fxopt.frontend.unlift import State

_FRESH = (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default)


def raise_graph(graph: Graph, model: nn.Module, state: State) -> GraphModule:
    """Raises a flat functional graph of ATen calls to module form.

    Args:
        graph: The graph; it is consumed.
        model: The (copy of the) model that the graph was exported from: its modules give names
            and training behaviour to the leaves.
        state: The tensors that the graph fetches.

    Returns:
        A module in eval mode that holds only what its graph refers to.
    """
    context = Context(graph, model, state)
    drop_dead_calls(graph)  # an unused result would keep its call from being raised
    for node in list(graph.nodes):
        raiser = RAISERS.get(node.target)
        if raiser is not None:
            raiser(context, node)
        elif node.target in _FRESH:  # constants are never written to in a functional graph
            node.replace_all_uses_with(node.args[0])
    drop_dead_calls(graph)
    return _assemble(graph, context, type(model).__name__)


def drop_dead_calls(graph: Graph) -> None:
    """Erases calls and fetches whose results nothing reads."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)


def _assemble(graph: Graph, context: Context, title: str) -> GraphModule:
    """Hangs leaves and tensors at their names and binds the graph to them."""
    root = nn.Module()
    names = _Names({str(node.target) for node in graph.find_nodes(op="call_module")})
    for node in graph.find_nodes(op="call_module"):
        wanted = str(node.target)
        node.target = names.settle(wanted)
        _owner(root, node.target).add_module(_field(node.target), context.leaves[wanted])
    for node in graph.find_nodes(op="get_attr"):
        wanted = str(node.target)
        node.target = names.settle(wanted)
        persistent = wanted not in context.state.transient
        _hang(root, node.target, context.state.tensors[wanted], persistent)
    return _bind(root.eval(), graph, title)


class _Names:
    """Final names: nothing hangs below a leaf, so that a leaf can be replaced as a whole."""

    def __init__(self, leaves: set[str]) -> None:
        self._leaves = leaves
        self._settled: dict[str, str] = {}
        self._taken = set(leaves)

    def settle(self, wanted: str) -> str:
        """Fc -> fc, fc.scale -> fc_scale where fc is a leaf."""
        if wanted not in self._settled:
            parts = wanted.split(".")
            above = (i for i in range(1, len(parts)) if ".".join(parts[:i]) in self._leaves)
            cut = next(above, None)
            self._settled[wanted] = wanted if cut is None else self._beside(parts, cut)
        return self._settled[wanted]

    def _beside(self, parts: list[str], cut: int) -> str:
        name = ".".join(parts[:cut]) + "_" + "_".join(parts[cut:])
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _field(name: str) -> str:
    return name.rpartition(".")[2]


def _owner(root: nn.Module, name: str) -> nn.Module:
    """The container that holds a name, made where it is missing."""
    owner = root
    for part in name.split(".")[:-1]:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    return owner


def _hang(root: nn.Module, name: str, tensor: torch.Tensor, persistent: bool) -> None:
    owner, field = _owner(root, name), _field(name)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(field, tensor)
    elif field not in owner._buffers:
        owner.register_buffer(field, tensor, persistent=persistent)


def _bind(root: nn.Module, graph: Graph, title: str) -> GraphModule:
    """Makes the GraphModule, which forgets which of its buffers were left out of the state."""
    module = GraphModule(root, graph, title)
    for path, owner in root.named_modules():
        module.get_submodule(path)._non_persistent_buffers_set |= owner._non_persistent_buffers_set
    return module
