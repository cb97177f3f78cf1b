"""Linear layers in the form that is computed fastest.

As pointwise convolutions oneDNN computes them; Inductor gives them to MKL. Which is faster depends
on the processor and on the size: on a Zen 4, MKL reaches 80 billion multiply-adds a second on
products of BERT's sizes, oneDNN 105.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import fx, nn

from fxopt.plugin import Program, multiply_adds

aten = torch.ops.aten

_MOST = 0.5  # share of the arithmetic from which on a program lives by its linear layers


class Size(NamedTuple):
    """Of a linear layer: rows of the input, and how many numbers a row has before and after."""

    rows: int
    wide: int
    out: int

    @property
    def work(self) -> int:
        """Multiply-adds."""
        return math.prod(self)


def lives_by_linears(program: Program) -> bool:
    """Whether most multiply-adds are those of linear layers in float32."""
    counts = multiply_adds(program)
    linear = sum(count for node, count in counts.items() if _is_linear_layer(program, node))
    return linear > _MOST * sum(counts.values())


def layers_by_size(module: fx.GraphModule) -> Mapping[Size, Sequence[fx.Node]]:
    """The linear layers in float32 that have constant weights.

    Args:
        module: A flat module with fixed sizes.
    """
    found: dict[Size, list[fx.Node]] = defaultdict(list)
    for node in module.graph.find_nodes(op="call_function", target=aten.linear.default):
        weight: Any = node.args[1]
        if weight.op == "get_attr" and node.meta["val"].dtype is torch.float32:
            found[_size(node)].append(node)
    return found


def as_convolutions(module: fx.GraphModule, layers: Iterable[fx.Node]) -> None:
    """Rewrites linear layers.

    An image whose pixels are the rows of the input lies in memory as the input does
    (channels-last), so nothing is copied.

    Args:
        module: A flat module with fixed sizes; it is changed.
        layers: Some of :func:`layers_by_size`.
    """
    for node in layers:
        node.replace_all_uses_with(_convolved(module.graph, node))
        module.graph.erase_node(node)
    module.recompile()


def fold_rows(module: fx.GraphModule) -> None:
    """Gives float linear layers one dimension of rows where inputs do not lie in memory in order.

    Torch makes a product of batches of it otherwise, with a copy of the weight for each, unless the
    weight requires a gradient, which one that was rounded does not: so vit_b_16 in bfloat16 took
    5.4 s a call at batch 8, instead of 0.3.

    Args:
        module: A flat module with fixed sizes; it is changed.
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.linear.default):
        x, weight = node.args[0].meta["val"], node.args[1]
        if weight.op == "get_attr" and x.dim() > 2 and not x.is_contiguous():
            node.replace_all_uses_with(_folded(module.graph, node))
            module.graph.erase_node(node)
    module.recompile()


_IN, _OUT = [0, 3, 1, 2], [0, 2, 3, 1]  # channels to the front, and back


def _size(node: fx.Node) -> Size:
    x = cast(fx.Node, node.args[0])
    *leading, out = node.meta["val"].shape
    return Size(math.prod(leading), x.meta["val"].shape[-1], out)


def _convolved(graph: fx.Graph, node: fx.Node) -> fx.Node:
    x, weight, *bias = cast(tuple[fx.Node, ...], node.args)
    rows, wide, out = _size(node)
    call = functools.partial(_call, graph)
    with graph.inserting_before(node):
        image = call(aten.permute.default, call(aten.reshape.default, x, [1, rows, 1, wide]), _IN)
        kernel = call(aten.reshape.default, weight, [out, wide, 1, 1])
        pixels = call(aten.conv2d.default, image, kernel, *bias)
        shape = list(node.meta["val"].shape)
        return call(aten.reshape.default, call(aten.permute.default, pixels, _OUT), shape)


def _folded(graph: fx.Graph, node: fx.Node) -> fx.Node:
    x, *others = cast(tuple[fx.Node, ...], node.args)
    rows, wide, _ = _size(node)
    with graph.inserting_before(node):
        folded = _call(graph, aten.reshape.default, x, [rows, wide])
        product = _call(graph, aten.linear.default, folded, *others)
        return _call(graph, aten.reshape.default, product, list(node.meta["val"].shape))


def _call(graph: fx.Graph, target: Callable[..., Any], *args: Any) -> fx.Node:
    made = graph.call_function(target, args)
    made.meta["val"] = target(*fx.map_arg(args, lambda arg: arg.meta["val"]))
    return made


def _is_linear_layer(program: Program, node: fx.Node) -> bool:
    layer = program.leaf(node) if node.op == "call_module" else None
    is_linear = type(layer) is nn.Linear or node.target is nn.functional.linear
    return is_linear and node.meta["val"].dtype is torch.float32
