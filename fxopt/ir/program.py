"""The program: a captured model in module form, the one thing that passes work on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

from fxopt.ir.edit import Edit
from fxopt.ir.leaf import tensor_bytes
from fxopt.ir.shapes import attribute
from fxopt.ir.signature import Signature
from fxopt.ir.text import program_fingerprint, program_text
from fxopt.ir.verify import verify_program


class Program:
    """A flat graph in module form, with the signature that the user calls it by.

    Invariants are listed in ``docs/invariants.md`` and checked by :meth:`verify`.

    Attributes:
        module: Its graph takes one placeholder per leaf of the inputs and returns a flat tuple.
        signature: How nested inputs and outputs map to the flat ones.
        notes: What capture has to tell the user, such as a batch that had to stay fixed.
        rewrite_limit: With a number, edits stop rewriting after so many (used to bisect).
        rewrites: What edits have done to the program since it was made or cloned.
    """

    def __init__(
        self, module: fx.GraphModule, signature: Signature, notes: tuple[str, ...] = ()
    ) -> None:
        self.module = module
        self.signature = signature
        self.notes = notes
        self.rewrite_limit: int | None = None
        self.rewrites: list[str] = []

    @property
    def graph(self) -> fx.Graph:
        """The graph of :attr:`module`. Read it; change it through :meth:`edit` alone."""
        return self.module.graph

    @property
    def nodes(self) -> list[fx.Node]:
        """All nodes in order, as a list that stays valid while an edit changes the graph."""
        return list(self.graph.nodes)

    @property
    def inputs(self) -> list[fx.Node]:
        """The placeholders, in order."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    @property
    def output(self) -> fx.Node:
        """The output node; its one argument is the flat tuple of results."""
        return self.graph.output_node()

    def find(self, *targets: Any) -> Iterator[fx.Node]:
        """The nodes that call one of ``targets``, in order.

        Args:
            *targets: Operator overloads, Python functions, or ``nn.Module`` classes (subclasses
                match too).
        """
        classes = tuple(t for t in targets if isinstance(t, type) and issubclass(t, nn.Module))
        functions = [t for t in targets if t not in classes]
        for node in self.nodes:
            function = node.op == "call_function" and node.target in functions
            if function or (node.op == "call_module" and isinstance(self.leaf(node), classes)):
                yield node

    def leaf(self, node: fx.Node) -> nn.Module:
        """The module that a ``call_module`` node calls."""
        return self.module.get_submodule(str(node.target))

    def tensor(self, node: fx.Node) -> torch.Tensor:
        """The parameter or buffer that a ``get_attr`` node reads."""
        value: torch.Tensor = attribute(self.module, str(node.target))
        return value

    def edit(self) -> Edit:
        """A context in which the graph may be changed; see :class:`fxopt.ir.edit.Edit`."""
        return Edit(self)

    def clone(self, memo: dict[int, Any] | None = None) -> Program:
        """A program with its own graph, modules and weights; tied weights stay tied.

        Args:
            memo: As of ``copy.deepcopy``, where the program is copied as part of something else.
        """
        twin = Program(copy.deepcopy(self.module, memo), self.signature, self.notes)
        twin.rewrite_limit = self.rewrite_limit
        return twin

    def twin(self) -> Program:
        """A copy that may be edited, of which nobody must write to the weights: they are shared."""
        weights = (*self.module.parameters(), *self.module.buffers())
        return self.clone({id(tensor): tensor for tensor in weights})

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        return self.clone(memo)

    def verify(self) -> None:
        """Checks every invariant.

        Raises:
            ProgramError: Lists each violation, with the node and the user's source line.
        """
        verify_program(self)

    def __call__(self, *flat: Any) -> tuple[Any, ...]:
        """Runs the graph on flat inputs and returns the flat outputs."""
        # fx's own __call__ prints a traceback before an error reaches who can handle it
        outputs: tuple[Any, ...] = nn.Module.__call__(self.module, *flat)
        return outputs

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program as the user calls the model."""
        return self.signature.unflatten(self(*self.signature.flatten(args, kwargs)))

    def weight_bytes(self) -> int:
        """Bytes of the weights; a tensor that several layers share counts once."""
        called = [self.leaf(node) for node in self.nodes if node.op == "call_module"]
        held = [t for leaf in called for t in (*leaf.parameters(), *leaf.buffers())]
        read = [self.tensor(node) for node in self.nodes if node.op == "get_attr"]
        return tensor_bytes([*held, *read])

    def text(self) -> str:
        """The readable form: one line a node."""
        return program_text(self)

    def fingerprint(self) -> str:
        """A digest of structure and weights, the same in every process."""
        return program_fingerprint(self)
