"""What the raisers share: argument binding, names, and the leaves made so far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from fxopt.frontend.keep import is_kept
from fxopt.frontend.source import module_path
from fxopt.frontend.unlift import State


def bind(node: Node) -> dict[str, Any]:
    """The arguments of an ATen call by their schema names, defaults filled in."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    bound: dict[str, Any] = {a.name: a.default_value for a in arguments}
    bound.update({a.name: v for a, v in zip(arguments, node.args, strict=False)})
    bound.update(node.kwargs)
    return bound


def is_constant(*values: Any) -> bool:
    """Whether settings are plain Python values, and not computed in the graph."""
    flat = torch.utils._pytree.tree_leaves(values)
    return not any(isinstance(value, (Node, torch.SymInt, torch.SymFloat)) for value in flat)


# The leaf of a model that is one itself, such as a lone nn.Linear: names of weights that emitted
# modules show leave out what begins so.
ROOT = "fxopt_root"


class Context:
    """The graph under construction, the model that it came from, and the leaves made so far."""

    def __init__(self, graph: Graph, model: nn.Module, state: State) -> None:
        self.graph = graph
        self.model = model
        self.state = state
        self.leaves: dict[str, nn.Module] = {}
        self.kept = {str(node.args[1]) for node in graph.nodes if is_kept(node)}
        self._keys: dict[str, tuple[Any, ...]] = {}

    def parameter(self, argument: Any) -> nn.Parameter | None:
        """The learned parameter that an argument fetches, None when it is anything else."""
        tensor = self.fetched(argument)
        return tensor if isinstance(tensor, nn.Parameter) else None

    def fetched(self, argument: Any) -> torch.Tensor | None:
        """The parameter, buffer or constant that an argument fetches."""
        if isinstance(argument, Node) and argument.op == "get_attr":
            return self.state.tensors[str(argument.target)]
        return None

    def learned(self, weight: Any, bias: Any) -> bool:
        """Whether a weight is a parameter, and a bias one too or missing."""
        has_bias = bias is None or self.parameter(bias) is not None
        return self.parameter(weight) is not None and has_bias

    def owner_name(self, node: Node, fields: Mapping[str, Any]) -> str:
        """Name for the leaf of a call: the user's module that owns its tensors, if there is one.

        Args:
            node: The call.
            fields: The arguments by the attribute that should hold each in the owner; at worst a
                name is derived from the first that is not missing.
        """
        target = next(str(value.target) for value in fields.values() if value is not None)
        for path in (module_path(node), target.rpartition(".")[0]):
            if self._owns(path or ROOT, fields):
                return path or ROOT
        return _derived_name(target, node)

    def _owns(self, path: str, fields: Mapping[str, Any]) -> bool:
        owner = self.submodule(path)
        if owner is None:
            return False
        return all(getattr(owner, k, None) is self.fetched(v) for k, v in fields.items())

    def submodule(self, path: str) -> nn.Module | None:
        """The user's module of that name."""
        if path == ROOT:
            return None if any(True for _ in self.model.children()) else self.model
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            return None

    def leaf(
        self, name: str, kind: type[nn.Module], tensors: Mapping[str, Any], **settings: Any
    ) -> str:
        """Makes a leaf on shared tensors, or finds the one made for the same module before.

        Args:
            name: The wanted name; a number is appended when another leaf has it.
            kind: A class of `torch.nn`.
            tensors: By attribute, the arguments that fetch the tensors (None for a missing one).
            **settings: Arguments of the class.

        Returns:
            The name of the leaf.
        """
        held = {field: self.fetched(value) for field, value in tensors.items()}
        key = (kind, *((f, id(t)) for f, t in held.items()), *sorted(settings.items(), key=str))
        return self.place(name, key, lambda: _build(kind, held, settings))

    def place(self, name: str, key: tuple[Any, ...], build: Callable[[], nn.Module]) -> str:
        """Finds or adds a leaf; two leaves are the same when name and key are."""
        unique, number = name, 0
        while unique in self.leaves and self._keys[unique] != key:
            number += 1
            unique = f"{name}_{number}"
        if unique not in self.leaves:
            self.leaves[unique], self._keys[unique] = build(), key
        return unique

    def call(self, node: Node, leaf: str, *args: Any) -> Node:
        """Adds the call of a leaf just before a node, with that node's metadata."""
        with self.graph.inserting_before(node):
            called = self.graph.create_node("call_module", leaf, args)
        called.meta = dict(node.meta)
        return called

    def replace(self, node: Node, leaf: str, *args: Any) -> Node:
        """Replaces a node by the call of a leaf."""
        called = self.call(node, leaf, *args)
        node.replace_all_uses_with(called)
        self.graph.erase_node(node)
        return called


def _derived_name(target: str, node: Node) -> str:
    """attn.in_proj_weight -> attn.in_proj, kernel -> kernel_conv2d, weight -> conv2d."""
    operation = str(node.target._schema.name).partition("::")[2]  # type: ignore[union-attr]
    owner, _, field = target.rpartition(".")
    if field == "weight":
        return owner or operation
    return target.removesuffix("_weight") if field.endswith("_weight") else f"{target}_{operation}"


def _build(
    kind: type[nn.Module], tensors: Mapping[str, torch.Tensor | None], settings: dict[str, Any]
) -> nn.Module:
    """Builds a module without allocating weights, and without consuming random numbers."""
    module = kind(**settings, device="meta")
    for field, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter) or field in module._parameters:
            module.register_parameter(field, tensor)  # type: ignore[arg-type]
        else:
            module._buffers[field] = tensor
    return module
