"""Writes operators out in simpler ones, call by call.

:meth:`torch.export.ExportedProgram.run_decompositions` traces the whole program once more, which
takes as long as all else that a converter does (5 of the 12 s in which OpenVINO gets BERT-base).
Few calls have to be written out, and where nothing writes to anything, each can be traced alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from operator import getitem
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx

Table = Mapping[Any, Callable[..., Any]]
"""By operator, what computes the same with simpler ones."""


class StepwiseProgram(torch.export.ExportedProgram):
    """An exported program that decomposes in place, and only calls for which that is needed."""

    @classmethod
    def of(cls, exported: torch.export.ExportedProgram) -> StepwiseProgram:
        """The same program; ``exported`` is not to be used any more."""
        own = cls.__new__(cls)
        vars(own).update(vars(exported))
        return own

    def copied(self) -> StepwiseProgram:
        """The same with a graph of its own; weights and what calls have as values are shared."""
        twin = self.of(self)
        twin._graph_module = fx.GraphModule(self.graph_module, copy.deepcopy(self.graph))
        twin._graph_module.meta.update(self.graph_module.meta)
        twin._graph_signature = copy.deepcopy(self.graph_signature)
        return twin

    def run_decompositions(
        self, decomp_table: Table | None = None, decompose_custom_triton_ops: bool = False
    ) -> torch.export.ExportedProgram:
        """Decomposes; see :meth:`torch.export.ExportedProgram.run_decompositions`."""
        table = dict(
            torch.export.default_decompositions() if decomp_table is None else decomp_table
        )
        mode = detect_fake_mode([node.meta.get("val") for node in self.graph.nodes])
        if mode is not None and not decompose_custom_triton_ops and _is_plain(self.graph):
            with mode, torch.no_grad(), enable_python_dispatcher():
                steps = _steps(self.graph, table)
            if not any(each.graph.find_nodes(op="get_attr") for each in steps.values()):
                self._write_out(steps)
                return self
        whole: torch.export.ExportedProgram = super().run_decompositions(
            table, decompose_custom_triton_ops
        )
        return whole

    def _write_out(self, steps: Mapping[fx.Node, fx.GraphModule]) -> None:
        """Puts steps in the places of calls."""
        for node, each in steps.items():
            new = _use_instead(node, _inserted(node, each))
            self.graph.erase_node(node)
            for old, name in new.items():  # outputs are listed by the names of their nodes
                self.graph_signature.replace_all_uses(old, name)
        self.graph.eliminate_dead_code()
        self.graph_module.recompile()


def _is_plain(graph: fx.Graph) -> bool:
    """Whether all that is called are operators that write to nothing, and functions of sizes."""
    operators = [n.target for n in graph.nodes if isinstance(n.target, torch._ops.OperatorBase)]
    plain = [each for each in operators if isinstance(each, torch._ops.OpOverload)]
    return len(plain) == len(operators) and not any(each._schema.is_mutable for each in plain)


def _steps(graph: fx.Graph, table: Table) -> dict[fx.Node, fx.GraphModule]:
    """The steps of all calls that have some; calls that are alike share theirs."""
    known: dict[str, fx.GraphModule] = {}
    found = {}
    for node in graph.nodes:
        if node.op == "call_function" and _has_steps(node.target, table):
            key = _kind(node)
            if key not in known:
                known[key] = _traced(node, table)
            found[node] = known[key]
    return found


def _has_steps(target: Any, table: Table) -> bool:
    """Whether an operator is in the table, or a composite that may return or change what it takes.

    The latter are ``reshape``, ``contiguous`` and the like: ``run_decompositions`` keeps none.
    """
    if target in table:
        return True
    if not isinstance(target, torch._ops.OpOverload) or not target._can_decompose():
        return False
    aliases = any(argument.alias_info is not None for argument in target._schema.arguments)
    return aliases or torch.Tag.maybe_aliasing_or_mutating in target.tags


def _kind(node: fx.Node) -> str:
    """All that the steps of a call depend on."""
    places = {each: f"input {index}" for index, each in enumerate(node.all_input_nodes)}
    arguments = fx.node.map_arg((node.args, node.kwargs), places.__getitem__)
    return f"{node.target}{arguments}{[_form(each.meta['val']) for each in places]}"


def _form(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return value
    return value.dtype, value.device, value.shape, value.stride(), value.storage_offset()


def _traced(node: fx.Node, table: Table) -> fx.GraphModule:
    """The steps of a call, as a graph whose inputs are those of the node."""
    taken = node.all_input_nodes

    def call(*given: Any) -> Any:
        values = dict(zip(taken, given, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    traced = make_fx(dispatch_functionalize(call), decomposition_table=table)
    return traced(*(each.meta["val"] for each in taken))


def _inserted(node: fx.Node, steps: fx.GraphModule) -> Any:
    """Copies the steps of a call in front of it; what comes of them."""
    inputs = steps.graph.find_nodes(op="placeholder")
    known = dict(zip(inputs, node.all_input_nodes, strict=True))
    with node.graph.inserting_before(node):
        result: Any = node.graph.graph_copy(steps.graph, known)
    for new in set(known.values()).difference(node.all_input_nodes):
        new.meta = {**node.meta, "val": new.meta["val"]}
    return result


def _use_instead(node: fx.Node, result: Any) -> dict[str, str]:
    """Lets those that use a node use a value, or the parts of one; new names by the old ones."""
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
        return {node.name: result.name}
    names = {}
    for user in list(node.users):
        assert user.target is getitem
        part = result[user.args[1]]
        user.replace_all_uses_with(part)
        names[user.name] = part.name
        node.graph.erase_node(user)
    return names
