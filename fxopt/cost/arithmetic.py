"""How much arithmetic each node of a program does, in multiply-adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx, nn

from fxopt.ir import Program
from fxopt.ir.shapes import attribute
from fxopt.ir.sizes import size_hint


def multiply_adds(program: Program) -> dict[fx.Node, int]:
    """The multiply-adds of convolutions and matrix products, at the sizes of the capture.

    Other operations count as nothing. Recurrent layers are counted by their weights, each of which
    takes part in every step; whatever else calls torch, modules of plugins too, by the products
    that it comes down to.

    Args:
        program: It is not changed.
    """
    return {node: _count(program, node) for node in program.nodes if node.op.startswith("call_")}


def batch_scale(program: Program, inputs: Sequence[Any]) -> float:
    """Rows of a batch over those that a program was captured with.

    A batch of one is captured as two: torch.export would take its size for fixed.

    Args:
        program: Its first input with a symbolic batch counts; 1.0 where there is none.
        inputs: Flat inputs.
    """
    for node, value in zip(program.inputs, inputs, strict=True):
        captured = node.meta.get("val")
        if isinstance(captured, torch.Tensor) and captured.dim() > 0:
            rows = captured.shape[0]
            if isinstance(rows, torch.SymInt):
                return len(value) / size_hint(rows)
    return 1.0


def example_size(node: fx.Node) -> int:
    """How many numbers the tensor that a node yields has, at the sizes of the examples."""
    value: torch.Tensor = node.meta["val"]
    return math.prod(map(size_hint, value.shape))


def example_bytes(node: fx.Node) -> int:
    """Bytes of the tensor that a node yields, at the sizes of the examples."""
    value: torch.Tensor = node.meta["val"]
    return example_size(node) * value.element_size()


def _count(program: Program, node: fx.Node) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    leaf = program.leaf(node) if node.op == "call_module" else None
    if isinstance(leaf, nn.RNNBase):
        return _count_recurrent(leaf, node)
    if isinstance(node.meta.get("val"), (int, float, torch.SymInt)):
        return 0
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            _call_on_meta(program, node, leaf)
    except (RuntimeError, TypeError, ValueError, AssertionError):
        return 0  # sizes depend on data, or there is no meta kernel: nothing is known of it
    return int(counter.get_total_flops()) // 2


def _count_recurrent(leaf: nn.RNNBase, node: fx.Node) -> int:
    value = node.all_input_nodes[0].meta["val"]
    steps = size_hint(value.numel()) // leaf.input_size
    return steps * sum(weight.numel() for weight in leaf.parameters() if weight.dim() > 1)


def _call_on_meta(program: Program, node: fx.Node, leaf: nn.Module | None) -> None:
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda arg: _meta(program, arg))
    if leaf is None:
        cast(Any, node.target)(*args, **kwargs)
        return
    state = {name: _empty(tensor) for name, tensor in leaf.named_parameters()}
    state |= {name: _empty(tensor) for name, tensor in leaf.named_buffers()}
    torch.func.functional_call(leaf, state, args, kwargs)


def _meta(program: Program, node: fx.Node) -> Any:
    if node.op == "get_attr":
        return _empty(attribute(program.module, str(node.target)))
    return torch.utils._pytree.tree_map(_sized, node.meta["val"])


def _sized(value: Any) -> Any:
    """A value of a node at the sizes of the examples."""
    if isinstance(value, torch.SymInt):
        return size_hint(value)
    return _empty(value) if isinstance(value, torch.Tensor) else value


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty([size_hint(s) for s in tensor.shape], dtype=tensor.dtype, device="meta")
