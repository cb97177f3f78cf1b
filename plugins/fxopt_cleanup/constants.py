"""Constant folding: what depends on no input is computed once and kept as a buffer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from fxopt.plugin import Edit, Program, is_aten, is_random
from torch import fx, nn

from fxopt_cleanup.memory import escapes

aten = torch.ops.aten

# Views that repeat elements: to store their result would cost memory and save nothing.
_BROADCASTS = {aten.expand.default, aten.expand_as.default, aten.broadcast_to.default}


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
            if not all(arg in constant for arg in node.all_input_nodes):
                continue
            behind = sum(constant[arg] for arg in set(node.all_input_nodes))
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
        """The tensors that an operation which is not constant reads."""
        return [
            node
            for node in constant
            if node.op == "call_function"
            and isinstance(node.meta["val"], torch.Tensor)
            and any(user not in constant for user in node.users)
            # the user may change in place what is returned; a constant must not be
            and not escapes(program, node)
        ]


def _computable(node: fx.Node) -> bool:
    if node.op != "call_function" or is_random(node) or node.target in _BROADCASTS:
        return False
    if not is_aten(node.target):
        return bool(node.all_input_nodes)  # getitem of a result with several tensors
    name: str = node.target._schema.name  # type: ignore[union-attr]
    return name.startswith("aten::") and "empty" not in name


def _bytes(node: fx.Node) -> int | None:
    """Bytes of the tensors of a node; None where a size is not known yet or it is no tensor."""
    value = node.meta.get("val")
    tensors = list(value) if isinstance(value, (tuple, list)) else [value]
    if not tensors or not all(_static(tensor) for tensor in tensors):
        return None
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _static(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and all(isinstance(size, int) for size in value.shape)


@torch.no_grad()
def _value(program: Program, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The value of a constant node; those on the way are kept in ``values``."""
    for needed in _needed(node, values):
        if needed.op == "get_attr":
            values[needed] = program.tensor(needed).detach()
            continue
        args, kwargs = fx.map_arg((needed.args, needed.kwargs), values.__getitem__)
        assert callable(needed.target)
        values[needed] = needed.target(*args, **kwargs)
    return values[node]


def _needed(node: fx.Node, values: dict[fx.Node, Any]) -> list[fx.Node]:
    """What has to be computed for ``node``, in order."""
    order: dict[fx.Node, None] = {}
    pending = [node]
    while pending:
        current = pending[-1]
        missing = [a for a in current.all_input_nodes if a not in values and a not in order]
        if missing:
            pending.extend(missing)
        else:
            order[pending.pop()] = None
    return [needed for needed in order if needed not in values]
