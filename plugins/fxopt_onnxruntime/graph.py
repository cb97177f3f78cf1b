"""Reading and changing an ONNX graph: what the rewriting rules share."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]


class Rewriter:
    """A graph under rewriting.

    Attributes:
        graph: The graph, changed in place.
        integer: Dequantized weights that integer kernels take.

    Args:
        model: Holds the graph.
        prefix: Begins the names of whatever is added.
    """

    def __init__(self, model: ir.Model, prefix: str) -> None:
        self._prefix = prefix
        self.graph = model.graph
        self.integer: set[ir.Value] = set()
        self._numbers = itertools.count()

    def nodes(self, *kinds: str) -> list[ir.Node]:
        """The nodes of standard operators of these kinds, in order, as a list that stays valid."""
        return [node for node in self.graph if node.op_type in kinds and node.domain == ""]

    def constant(self, array: Array) -> ir.Value:
        """A new constant."""
        import onnx_ir as ir

        name = f"{self._prefix}.{next(self._numbers)}"
        tensor = ir.tensor(np.ascontiguousarray(array).reshape(np.shape(array)), name=name)
        value = ir.val(name, dtype=tensor.dtype, shape=np.shape(array), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def insert(
        self, before: ir.Node, kind: str, *inputs: ir.Value, suffix: str = "", **attributes: Any
    ) -> ir.Value:
        """A new node with one output, in front of another node; its name ends in ``suffix``."""
        import onnx_ir as ir

        given = ir.convenience.convert_attributes(attributes)
        name = f"{self._prefix}.{kind}.{next(self._numbers)}{suffix}"
        node = ir.Node("", kind, inputs, given, name=name)
        node.outputs[0].name = f"{name}.out"
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def substitute(
        self,
        node: ir.Node,
        domain: str,
        kind: str,
        inputs: Sequence[ir.Value | None],
        without: Sequence[str] = (),
    ) -> None:
        """Another operator in place of a node, with its outputs and attributes but for some."""
        import onnx_ir as ir

        kept = [item for name, item in node.attributes.items() if name not in without]
        count = len(node.outputs)
        twin = ir.Node(domain, kind, inputs, kept, num_outputs=count, name=node.name)
        self.graph.opset_imports.setdefault(domain, 1)
        self.graph.insert_before(node, twin)
        for old, new in zip(node.outputs, twin.outputs, strict=True):
            new.name = f"{self._prefix}.{old.name}" if old.name else ""
            self.replace(old, new)

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Lets all that took ``old``, outputs of the graph too, take ``new``."""
        if new.dtype is None:
            new.type = old.type
        if new.shape is None:
            new.shape = old.shape
        old.replace_all_uses_with(new, replace_graph_outputs=True)

    def after(self, value: ir.Value) -> ir.Node:
        """The node that follows the producer of ``value``: the earliest place for its users."""
        producer = value.producer()
        nodes = iter(self.graph)
        if producer is None:
            return next(nodes)
        for node in nodes:
            if node is producer:
                break
        return next(nodes)


def array_of(value: ir.Value | None) -> Array | None:
    """The numbers of a constant; None for anything else."""
    import onnx_ir as ir

    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def producer_of(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The node that yields ``value``, if it is one of these kinds."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type in kinds else None


def users_of(value: ir.Value) -> list[ir.Node]:
    """The nodes that take ``value``, each as often as it takes it."""
    return [node for node, _ in value.uses()]


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node; None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def given(node: ir.Node, index: int = 0) -> ir.Value:
    """An input of a node that cannot be left out."""
    value = node.inputs[index]
    assert value is not None
    return value


def rank_of(value: ir.Value | None) -> int | None:
    """The number of dimensions, if it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def sizes_of(value: ir.Value) -> list[int | None]:
    """The sizes, None where they are known at run time only; the rank must be known."""
    assert value.shape is not None
    return [size if isinstance(size, int) else None for size in value.shape]
