"""Which quantized layers did not get an integer kernel: compares a program with lowered code."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from fxopt.backends.base import Kernel
from fxopt.ir import LeafModule, Program

_CONVOLUTION = frozenset({"Convolution", "Deconvolution"})
_LINEAR = frozenset({"FullyConnected", "MatMul", "Linear"})
_RECURRENT = frozenset({"RNNSeq"})
_FAMILIES = {"convolution": _CONVOLUTION, "linear": _LINEAR, "recurrent": _RECURRENT}
_FLOAT_LAYERS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.modules.conv._ConvNd, "convolution"),
    (nn.Linear, "linear"),
    (nn.RNNBase, "recurrent"),
)

Layer = tuple[str, str]
"""Qualified name, and the precision that the program means it to compute in ("" for float)."""


def find_fallbacks(program: Program, kernels: Sequence[Kernel]) -> tuple[str, ...]:
    """The layers that ``program`` computes in a low precision and the lowered code does not.

    Layers and kernels are matched in the order of the program, where there are as many of the one
    as of the other; where a runtime split or merged some, their numbers are compared and its own
    names given.

    Args:
        program: What was lowered.
        kernels: What the lowered code runs; empty where that cannot be told.

    Returns:
        A line for each, such as ``conv1 runs in f32``.
    """
    if not kernels:
        return ()
    lines: list[str] = []
    for family, kinds in _FAMILIES.items():
        layers = list(_layers(program, family))
        lowered = [kernel for kernel in kernels if kernel.kind in kinds]
        if len(layers) == len(lowered):
            lines += _matched(layers, lowered)
        else:
            lines += _counted(family, layers, lowered)
    return tuple(lines)


def _matched(layers: Sequence[Layer], lowered: Sequence[Kernel]) -> Iterator[str]:
    for (name, wanted), kernel in zip(layers, lowered, strict=True):
        if wanted and kernel.precision != wanted:
            yield f"{name} runs in {kernel.precision}"


def _counted(family: str, layers: Sequence[Layer], lowered: Sequence[Kernel]) -> Iterator[str]:
    for precision in dict.fromkeys(wanted for _, wanted in layers if wanted):
        wanted = sum(layer[1] == precision for layer in layers)
        missing = wanted - sum(kernel.precision == precision for kernel in lowered)
        if missing > 0:
            others = [f"{k.name} ({k.precision})" for k in lowered if k.precision != precision]
            found = ", ".join(others) or "no other kernel"
            yield f"{missing} of {wanted} {family} layers do not run in {precision}: {found}"


def _layers(program: Program, family: str) -> Iterator[Layer]:
    for node in program.nodes:
        if node.op != "call_module":
            continue
        leaf = program.leaf(node)
        if isinstance(leaf, LeafModule) and leaf.family == family:
            yield str(node.target), leaf.precision
        elif any(isinstance(leaf, cls) and name == family for cls, name in _FLOAT_LAYERS):
            yield str(node.target), ""
