"""From an exported program to one flat graph that fetches its own weights.

`torch.export` lifts parameters, buffers and constants to graph inputs, wraps blocks of `no_grad`
and autocast in higher-order operations and guards shapes by assertions. Here each lifted input
becomes a `get_attr` under the user's name, the blocks are inlined, and the assertions go.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

from fxopt.errors import CaptureError
from fxopt.frontend.autocast import Autocast
from fxopt.frontend.source import source_of

_LIFTED = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_ASSERTIONS = ("aten::_assert", "aten::sym_constrain", "aten::_functional_assert")
_META = ("val", "stack_trace", "nn_module_stack")


@dataclass
class State:
    """The tensors that a graph fetches, by qualified name."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    transient: set[str] = field(default_factory=set)
    """Names that are left out of the state_dict: constants, and non-persistent buffers."""

    def first_name(self, name: str) -> str:
        """The first of the names of a tied tensor: export picks the last."""
        tensor = self.tensors[name]
        return next(key for key, value in self.tensors.items() if value is tensor)


def unlift(exported: ExportedProgram, state: State) -> Graph:
    """Builds a flat graph whose inputs are the user's alone.

    Args:
        exported: The exported program. Its weights are looked up in `state`.
        state: Receives the buffers and constants that the model itself does not register.

    Returns:
        A graph with one placeholder per input leaf and an output of one flat tuple of leaves.

    Raises:
        CaptureError: The program holds control flow, or changes its inputs or buffers.
    """
    _refuse_mutation(exported)
    writer = _Writer(exported.graph_module)
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    lifted = {name for name, spec in specs.items() if spec.kind in _LIFTED}
    # the user's inputs come first in a program; export puts what it lifts before them
    for node in sorted(
        exported.graph.nodes, key=lambda n: n.op != "placeholder" or n.name in lifted
    ):
        spec = specs.get(node.name) if node.op == "placeholder" else None
        if spec is not None and spec.kind in _LIFTED:
            writer.fetch(node, _register(exported, state, spec))
        elif node.op == "output":
            writer.finish(node, _user_outputs(exported, node))
        else:
            writer.copy(node)
    return writer.graph


def _refuse_mutation(exported: ExportedProgram) -> None:
    signature = exported.graph_signature
    changed = {**signature.buffers_to_mutate, **signature.user_inputs_to_mutate}
    if changed:
        names = ", ".join(sorted(set(changed.values())))
        raise CaptureError(f"the model changes {names} in place when it runs in eval mode")
    odd = [s for s in signature.input_specs if s.kind not in (*_LIFTED, InputKind.USER_INPUT)]
    if odd:
        raise CaptureError(f"the model holds an object that cannot be captured: {odd[0].target}")


def _register(exported: ExportedProgram, state: State, spec: Any) -> str:
    name = str(spec.target)
    if name not in state.tensors:
        state.tensors[name] = exported.constants.get(name, exported.state_dict.get(name))
    if spec.kind is InputKind.CONSTANT_TENSOR or spec.persistent is False:
        state.transient.add(name)
    return state.first_name(name)


def _user_outputs(exported: ExportedProgram, output: Node) -> list[Any]:
    specs = exported.graph_signature.output_specs
    values = output.args[0]
    assert isinstance(values, (tuple, list))
    return [
        spec.arg.value if isinstance(spec.arg, ConstantArgument) else value
        for spec, value in zip(specs, values, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]


class _Writer:
    """Copies nodes into a new graph, inlining as it goes."""

    def __init__(self, owner: GraphModule) -> None:
        self.graph = Graph()
        self._owner = owner
        self._new: dict[Node, Any] = {}
        self._autocast: Autocast | None = None

    def fetch(self, node: Node, name: str) -> None:
        """Turns a lifted placeholder into a get_attr."""
        self._new[node] = self._keep_meta(node, self.graph.create_node("get_attr", name))

    def finish(self, node: Node, leaves: list[Any]) -> None:
        """Writes the output node."""
        self.graph.output(tuple(self._translate(leaves)))

    def copy(self, node: Node) -> None:
        """Copies one node, or what it stands for."""
        if _is_assertion(node):
            return
        if node.target is operator.getitem and isinstance(self._first(node), tuple):
            self._new[node] = self._first(node)[node.args[1]]
        elif isinstance(node.target, torch._ops.HigherOrderOperator):
            self._new[node] = self._inline(node)
        elif node.op != "get_attr":  # the submodules of higher-order operations
            cast = self._cast(node)
            copied = self.graph.node_copy(node, lambda each: cast.get(each, self._new[each]))
            self._new[node] = self._keep_meta(node, copied)

    def _cast(self, node: Node) -> dict[Node, Node]:
        """The arguments that autocast casts, cast."""
        if self._autocast is None or node.op != "call_function":
            return {}
        cast = {}
        for argument, dtype in self._autocast.casts_of(node).items():
            new = self.graph.call_function(torch.ops.aten.to.dtype, (self._new[argument], dtype))
            cast[argument] = self._keep_meta(node, new)
            new.meta["val"] = argument.meta["val"].to(dtype)
        return cast

    def _first(self, node: Node) -> Any:
        return self._new.get(node.args[0]) if isinstance(node.args[0], Node) else None

    def _translate(self, value: Any) -> Any:
        return map_aggregate(value, lambda v: self._new[v] if isinstance(v, Node) else v)

    def _keep_meta(self, old: Node, new: Node) -> Node:
        new.meta = {key: old.meta[key] for key in _META if key in old.meta}
        source = source_of(old)
        if source is not None:
            new.meta["source"] = source
        return new

    def _inline(self, node: Node) -> tuple[Any, ...]:
        body, operands, detached, autocast = _block(node, self._autocast)
        graph_module = getattr(self._owner, str(body.target))
        inputs = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
        self._new.update(zip(inputs, self._translate(operands), strict=True))
        outside = self._owner, self._autocast
        self._owner, self._autocast = graph_module, autocast
        for inner in graph_module.graph.nodes:
            if inner.op not in ("placeholder", "output"):
                self.copy(inner)
        self._owner, self._autocast = outside
        results = self._translate(graph_module.graph.output_node().args[0])
        return tuple(self._detach(value) if detached else value for value in results)

    def _detach(self, value: Any) -> Any:
        """What leaves a no_grad block has no gradient."""
        val = value.meta.get("val") if isinstance(value, Node) else None
        if not isinstance(val, torch.Tensor) or not val.is_floating_point():
            return value
        detached = self.graph.call_function(torch.ops.aten.detach.default, (value,))
        detached.meta = dict(value.meta)
        return detached


_Block = tuple[Node, tuple[Any, ...], bool, Autocast | None]


def _block(node: Node, autocast: Autocast | None) -> _Block:
    """Splits a block operation: its body and operands, whether gradients stop, and autocast."""
    operation = str(node.target)
    if operation == "wrap_with_set_grad_enabled":
        enabled, body, *operands = node.args
        return _as_node(body), tuple(operands), not enabled, autocast
    if operation == "wrap_with_autocast":
        settings: tuple[Any, ...] = node.args
        device, dtype, enabled, _cache, body, *operands = settings
        inside = Autocast(device, dtype) if enabled else None
        return _as_node(body), tuple(operands), False, inside
    raise CaptureError(
        f"{operation} cannot be captured: only straight-line code can", where=source_of(node)
    )


def _as_node(value: Any) -> Node:
    assert isinstance(value, Node)
    return value


def _is_assertion(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.name.startswith(_ASSERTIONS)


def model_state(model: torch.nn.Module) -> State:
    """The registered tensors of a model: the very objects, tied ones under each of their names."""
    named: Mapping[str, torch.Tensor] = {
        **dict(model.named_buffers(remove_duplicate=False)),
        **dict(model.named_parameters(remove_duplicate=False)),
    }
    return State(dict(named))
