"""Constant folding: what depends on no input is computed once and kept as a buffer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Edit, Program, is_aten, is_random
from fxopt_cleanup.memory import argument, escapes

aten = torch.ops.aten

# Operations that take no more than dtype, device or shape from a tensor: what they fill it with.
_FILLS: dict[Any, Callable[[fx.Node], Any]] = {
    aten.zeros_like.default: lambda node: 0,
    aten.new_zeros.default: lambda node: 0,
    aten.ones_like.default: lambda node: 1,
    aten.new_ones.default: lambda node: 1,
    aten.full_like.default: lambda node: argument(node, "fill_value"),
    aten.new_full.default: lambda node: argument(node, "fill_value"),
}


@dataclass(frozen=True)
class Folding:
    """What may be folded.

    Attributes:
        limit: Bytes that a constant may take where its sources do not take more.
        parameters: Whether parameters count as constants.
    """

    limit: int
    parameters: bool

    def fold(self, program: Program, edit: Edit) -> Counter[str]:
        """Replaces every last node that is constant, and may be stored, by a buffer."""
        constant = self._constant_nodes(program)
        values: dict[fx.Node, Any] = {}
        counts: Counter[str] = Counter()
        for node in self._last(program, constant):
            if edit.exhausted:
                break
            # a copy: a view would keep the whole memory of what it views
            value = _value(program, node, values).clone()
            edit.redirect(node, edit.constant(value, before=node, name=f"{node.name}_folded"))
            counts["folded"] += 1
        return counts

    def _constant_nodes(self, program: Program) -> dict[fx.Node, int]:
        """The nodes that may be computed now, with the bytes of the tensors behind each."""
        constant: dict[fx.Node, int] = {}
        for node in program.graph.nodes:
            sources = _sources(node)
            if not all(source in constant for source in sources):
                continue
            behind = sum(constant[source] for source in set(sources))
            if node.op == "get_attr" and self._counts(program.tensor(node)):
                constant[node] = _bytes(node) or 0
            elif _computable(node) and self._small(node, behind):
                constant[node] = behind
        return constant

    def _counts(self, tensor: torch.Tensor) -> bool:
        return self.parameters or not isinstance(tensor, nn.Parameter)

    def _small(self, node: fx.Node, behind: int) -> bool:
        size = _bytes(node)
        return size is not None and size <= max(self.limit, behind)

    def _last(self, program: Program, constant: dict[fx.Node, int]) -> list[fx.Node]:
        """The constant tensors that remaining operations read, in order."""
        stay: set[fx.Node] = set()
        last: list[fx.Node] = []
        for node in reversed(list(constant)):
            if not any(user not in constant or user in stay for user in node.users):
                continue
            if _storable(program, node):
                last.append(node)
            else:
                stay.add(node)
        return last[::-1]


def _storable(program: Program, node: fx.Node) -> bool:
    """Whether the value of a constant node may become a buffer, and is worth it."""
    value = node.meta["val"]
    if node.op != "call_function" or not isinstance(value, torch.Tensor) or _broadcast(value):
        return False
    # the user may change in place what is returned; a constant must not be changed
    return not escapes(program, node)


def _broadcast(value: torch.Tensor) -> bool:
    """Whether a tensor is a view that repeats elements: storing it costs memory for nothing."""
    sizes = zip(value.shape, value.stride(), strict=True)
    return any(stride == 0 and size > 1 for size, stride in sizes)


def _sources(node: fx.Node) -> list[fx.Node]:
    """The nodes whose data the result depends on."""
    if node.target not in _FILLS:
        return node.all_input_nodes
    number = _FILLS[node.target](node)
    return [number] if isinstance(number, fx.Node) else []


def _computable(node: fx.Node) -> bool:
    if node.op != "call_function" or is_random(node):
        return False
    if not is_aten(node.target):
        return bool(node.all_input_nodes)  # getitem of a result with several tensors
    name: str = node.target._schema.name  # type: ignore[union-attr]
    return name.startswith("aten::") and "empty" not in name


def _bytes(node: fx.Node) -> int | None:
    """Bytes of the tensors of a node; None where a size is not known yet or it is no tensor."""
    value = node.meta.get("val")
    tensors: list[Any] = list(value) if isinstance(value, (tuple, list)) else [value]
    if not tensors or not all(_static(tensor) for tensor in tensors):
        return None
    return int(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _static(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and all(isinstance(size, int) for size in value.shape)


@torch.no_grad()
def _value(program: Program, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The value of a constant node; those on the way are kept in ``values``."""
    for needed in _needed(node, values):
        values[needed] = _computed(program, needed, values)
    return values[node]


def _computed(program: Program, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return program.tensor(node).detach()
    if node.target in _FILLS:
        like, number = node.meta["val"], _FILLS[node.target](node)
        return torch.full(like.shape, number, dtype=like.dtype, device=like.device)
    args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _needed(node: fx.Node, values: dict[fx.Node, Any]) -> list[fx.Node]:
    """What has to be computed for ``node``, in order."""
    order: dict[fx.Node, None] = {}
    pending = [node]
    while pending:
        current = pending[-1]
        missing = [a for a in _sources(current) if a not in values and a not in order]
        if missing:
            pending.extend(missing)
        else:
            order[pending.pop()] = None
    return [needed for needed in order if needed not in values]
