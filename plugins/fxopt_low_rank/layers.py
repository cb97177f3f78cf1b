"""From layers to what is factorized, and back to layers of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from fxopt.plugin import Program
from fxopt_low_rank.factors import Stage, Stages

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


@dataclass(frozen=True)
class Geometry:
    """How a convolution slides; of a linear layer all is empty.

    Attributes:
        stride: Per dimension of space.
        padding: Zeros on either side.
        dilation: Steps between taps.
    """

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @classmethod
    def of(cls, leaf: Any) -> Geometry:
        """That of a layer which :func:`refusal` lets through."""
        if isinstance(leaf, nn.Linear):
            return cls()
        return cls(tuple(leaf.stride), _padding(leaf), tuple(leaf.dilation))


def refusal(program: Program, node: fx.Node) -> str | None:
    """Why a layer cannot be factorized; None where it can."""
    leaf: Any = program.leaf(node)
    if type(leaf) is not nn.Linear and type(leaf) not in _CONVOLUTIONS:
        return f"is a {type(leaf).__name__}, which may compute something else"
    if leaf._forward_hooks or leaf._forward_pre_hooks:
        return "has hooks"
    if len(node.args) != 1 or node.kwargs:
        return "is called in an unusual way"
    if not leaf.weight.is_floating_point() or not bool(leaf.weight.isfinite().all()):
        return "has weights that are not finite"
    if _uses(program, leaf) > 1:
        return "its weights are used more than once"
    return None if isinstance(leaf, nn.Linear) else _odd_convolution(leaf)


def _odd_convolution(leaf: Any) -> str | None:
    if leaf.groups > 1:
        return "has groups"
    if leaf.padding_mode != "zeros":
        return f"pads by {leaf.padding_mode}"
    uneven = any(
        (size - 1) * apart % 2 for size, apart in zip(leaf.kernel_size, leaf.dilation, strict=True)
    )
    return "pads unevenly" if leaf.padding == "same" and uneven else None


def _uses(program: Program, leaf: nn.Module) -> int:
    """How many nodes call a leaf that has the same weight, or read it."""
    weight = leaf.get_parameter("weight")
    called = [program.leaf(node) for node in program.nodes if node.op == "call_module"]
    read = [program.tensor(node) for node in program.nodes if node.op == "get_attr"]
    tied = sum(any(own is weight for own in each.parameters()) for each in called)
    return tied + sum(tensor is weight for tensor in read)


def _padding(leaf: Any) -> tuple[int, ...]:
    if leaf.padding == "valid":
        return (0,) * len(leaf.kernel_size)
    if leaf.padding == "same":
        pairs = zip(leaf.kernel_size, leaf.dilation, strict=True)
        return tuple((size - 1) * apart // 2 for size, apart in pairs)
    return tuple(leaf.padding)


def made(
    leaf: Any, geometry: Geometry, stages: Stages, bias: torch.Tensor | None
) -> list[nn.Module]:
    """The layers of some stages, in the dtype of what they replace; the last has the bias."""
    biases = [None] * (len(stages) - 1) + [bias]
    return [_module(leaf, geometry, *each) for each in zip(stages, biases, strict=True)]


def _module(leaf: Any, geometry: Geometry, stage: Stage, bias: torch.Tensor | None) -> nn.Module:
    outputs, inputs = stage.weight.shape[:2]
    module: Any
    if isinstance(leaf, nn.Linear):
        module = nn.Linear(inputs, outputs, bias=bias is not None)
    else:
        slides = [dim in stage.dims for dim in range(len(geometry.stride))]
        stride, padding, dilation = (
            tuple(value if slid else neutral for value, slid in zip(values, slides, strict=True))
            for values, neutral in (
                (geometry.stride, 1), (geometry.padding, 0), (geometry.dilation, 1)
            )
        )  # fmt: skip
        module = type(leaf)(
            inputs * stage.groups, outputs, tuple(stage.weight.shape[2:]), stride, padding,
            dilation, stage.groups, bias=bias is not None,
        )  # fmt: skip
    asks = bool(leaf.weight.requires_grad)
    module.weight = nn.Parameter(stage.weight.to(leaf.weight), requires_grad=asks)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(leaf.weight), requires_grad=asks)
    whole: nn.Module = module
    return whole
