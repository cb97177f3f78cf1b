"""Writes the graph of a rewritten module, with the constants that it reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Kernel

KERNEL = "fxopt_kernel"
"""Key of a node's metadata: the :class:`Kernel` that a heavy operation is."""


class Writer:
    """A graph in the making and the module that holds its constants.

    Args:
        reads_bytes: As of :class:`fxopt_inductor.lowp.Form`.
    """

    def __init__(self, reads_bytes: bool) -> None:
        self.reads_bytes = reads_bytes
        self._root = nn.Module()
        self.graph = fx.Graph()

    def call(self, target: Any, *args: Any, name: str | None = None, **kwargs: Any) -> fx.Node:
        """A node that calls a function."""
        return self.graph.create_node("call_function", target, args, kwargs, name)

    def heavy(self, kernel: Kernel, target: Any, *args: Any) -> fx.Node:
        """A node that calls one of the operations that kernels are listed for.

        It is named after the layer: Inductor names nodes in comments of its code.
        """
        node = self.call(target, *args, name=_identifier(kernel.name))
        node.meta[KERNEL] = kernel
        return node

    def constant(self, name: str, tensor: torch.Tensor) -> fx.Node:
        """A node that reads a tensor, which the module will hold under a name like ``name``."""
        name = _identifier(name)
        free = next(n for n in _numbered(name) if n not in self._root._buffers)
        self._root.register_buffer(free, tensor.detach())
        return self.graph.create_node("get_attr", free)

    def copy(self, node: fx.Node, inputs: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """A node of the old graph, given new inputs."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), inputs.__getitem__)
        return self.graph.create_node(node.op, node.target, args, kwargs, node.name)

    def finish(self, outputs: Any) -> fx.GraphModule:
        """The module, which returns ``outputs``; what does not matter to those is left out."""
        self.graph.output(outputs)
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return fx.GraphModule(self._root, self.graph).eval()


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name) or "value"


def _numbered(name: str) -> Any:
    yield name
    yield from (f"{name}_{index}" for index in range(1, 1 << 31))
