"""What the pass has to know of layers: which take a batch norm, and who else uses them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from fxopt.plugin import Program

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


def batch_norms(program: Program) -> Iterator[fx.Node]:
    """The calls of batch norms, in order."""
    for node in program.find(*BATCH_NORMS):
        if node.users and type(program.leaf(node)) in BATCH_NORMS:
            yield node


def is_layer(program: Program, node: Any) -> bool:
    """Whether ``node`` calls a convolution or linear layer of torch itself.

    A subclass, or one with hooks, may compute something else from the same weights.
    """
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return False
    leaf = program.leaf(node)
    return type(leaf) in LAYERS and not (leaf._forward_hooks or leaf._forward_pre_hooks)


def calls_of(program: Program, leaf: nn.Module) -> list[fx.Node]:
    """The nodes that call ``leaf``, under any name, or read one of its tensors."""
    tensors = {id(tensor) for tensor in (*leaf.parameters(), *leaf.buffers())}
    return [node for node in program.graph.nodes if _uses(program, node, leaf, tensors)]


def _uses(program: Program, node: fx.Node, leaf: nn.Module, tensors: set[int]) -> bool:
    if node.op == "call_module":
        return program.leaf(node) is leaf
    return node.op == "get_attr" and id(program.tensor(node)) in tensors


def copied(leaf: nn.Module) -> nn.Module:
    """A copy that shares its parameters with ``leaf``, until it gets its own."""
    return copy.deepcopy(leaf, {id(tensor): tensor for tensor in leaf.parameters()})


def channels_are_dim_1(program: Program, node: fx.Node) -> bool:
    """Whether the outputs of a layer are along dimension 1, which a batch norm normalises.

    Not so for a linear layer on more than two dimensions, nor for a convolution without a batch.
    """
    leaf: Any = program.leaf(node)
    # a weight has a dimension for the outputs where the result has one for the batch
    return bool(node.meta["val"].dim() == leaf.weight.dim())


def pads_with_other_values(leaf: Any) -> bool:
    """Whether a convolution sees zeros beyond its input, which a batch norm would not have made.

    Reflected, replicated and circular padding repeats values, which are normalised like the rest.
    """
    if leaf.padding_mode != "zeros" or leaf.padding == "valid":
        return False
    if leaf.padding == "same":
        return any(size > 1 for size in leaf.kernel_size)
    return any(leaf.padding)


def taps_differ(leaf: Any) -> bool:
    """Whether the outputs of a transposed convolution see different numbers of taps.

    Its padding crops outputs; its output padding adds some that see no tap at all.
    """
    single = all(size == 1 for size in (*leaf.kernel_size, *leaf.stride))
    return not single or any(leaf.output_padding)
