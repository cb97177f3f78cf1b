"""What OpenVINO can take, and how a program gets there."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxopt.plugin import (
    Backend,
    BackendInfo,
    LeafModule,
    Program,
    Target,
    Tensors,
    is_random,
)
from fxopt_openvino.convert import OpenVINOLowering
from fxopt_openvino.divide import divisible
from fxopt_openvino.integers import differs
from fxopt_openvino.pooling import counts_differently
from fxopt_openvino.settings import Settings
from fxopt_openvino.tensors import TAKEN

Precision = Literal["f32", "bf16"]

_BF16_FEATURES = {"avx512_bf16", "amx_bf16"}
_SMALL_MS = 1.0
_ROUNDED_GROUPS = (32, 128)
_EXTRA = "pip install 'fxopt[openvino]'"


@dataclass(frozen=True)
class OpenVINO(Backend):
    """Lowers a program to the CPU plugin of OpenVINO.

    Operations between fake quantizers run in int8, the others in ``precision``. On CPUs that have
    bfloat16 the runtime would use that unasked, but a program that only exact passes have seen
    may not change; where a pass was lossy already, bfloat16 is offered as a variant.

    Attributes:
        precision: What floating-point operations are computed in.
        single_thread: Whether a call keeps to one thread: on small nets, waking others costs more
            than they give.
        streams: How many parts a batch is divided into, which run side by side on a share of the
            threads each, where it can be divided by that: threads that work on samples of their
            own wait less for each other.
        rounded_group: How many neighbours in what linear layers with few-bit weights take share a
            scale, where that is rounded to int8 on each call; 0 where it is not.
    """

    precision: Precision = "f32"
    single_thread: bool = False
    streams: int = 1
    rounded_group: int = 0

    info: ClassVar[BackendInfo] = BackendInfo(
        name="openvino", targets=("cpu",), extra=_EXTRA, packages=("openvino",)
    )

    @property
    def label(self) -> str:
        """The name, with the settings that are not the usual ones."""
        settings: list[str] = [self.precision] if self.precision != "f32" else []
        settings += ["one thread"] if self.single_thread else []
        settings += [f"{self.streams} streams"] if self.streams > 1 else []
        settings += [f"rounded by {self.rounded_group}"] if self.rounded_group else []
        return " ".join([self.info.name, *settings])

    def variants(self, program: Program, target: Target, exact: bool) -> Sequence[Backend]:
        """Float32; for lossy programs also what computes faster and coarser.

        That is bfloat16, where the CPU has instructions for it, and in front of weights in few
        bits, activations that are rounded on each call.
        """
        if exact:
            return (self,)
        found = [self]
        if _BF16_FEATURES & set(target.features):
            found.append(replace(self, precision="bf16"))
        if _has_few_bits(program):
            found += [replace(self, rounded_group=group) for group in _ROUNDED_GROUPS]
        return found

    def tunings(
        self, program: Program, inputs: Tensors, target: Target, milliseconds: float
    ) -> Sequence[Backend]:
        """One thread, for small nets; streams, for batches of independent samples."""
        if self.single_thread or self.streams > 1:
            return ()
        found: list[Backend] = []
        if milliseconds < _SMALL_MS and target.threads > 1:
            found.append(replace(self, single_thread=True))
        streams = _streams(inputs, target)
        if streams > 1 and divisible(program, inputs):
            found.append(replace(self, streams=streams))
        return found

    def unavailable(self) -> str | None:
        """Why it cannot be used here; None when it can."""
        if importlib.util.find_spec("openvino") is None:
            return f"openvino is not installed; install it with {_EXTRA}"
        return None

    def unsupported(self, program: Program, target: Target) -> str | None:
        """Why it cannot take ``program`` as a whole; None when it can."""
        if not program.inputs:
            return "the program has no inputs"
        return super().unsupported(program, target)

    def refuses(self, program: Program, node: fx.Node, target: Target) -> str | None:
        """Why it cannot take a node; None when it can."""
        if is_random(node):
            return "draws random numbers"
        for tensor in _tensors(node):
            if tensor.dtype not in TAKEN:
                kind = str(tensor.dtype).removeprefix("torch.")
                return f"works on {kind}, which OpenVINO would compute in another precision"
            if free_unbacked_symbols(tensor):
                return "has a size that depends on the data"
        return differs(node) or counts_differently(node)

    def lower(self, program: Program, inputs: Tensors, target: Target) -> OpenVINOLowering:
        """Translates ``program``, once for all batch sizes where that is possible."""
        threads = 1 if self.single_thread else target.threads
        settings = Settings(threads, self.precision, self.streams, self.rounded_group)
        return OpenVINOLowering(program, inputs, settings)


def _has_few_bits(program: Program) -> bool:
    """Whether there are linear layers with few-bit weights, for which rounding is offered."""
    leaves = (program.leaf(node) for node in program.nodes if node.op == "call_module")
    stored = (leaf for leaf in leaves if isinstance(leaf, LeafModule) and leaf.weight_bits)
    return any(leaf.family == "linear" for leaf in stored)


def _streams(inputs: Tensors, target: Target) -> int:
    """As many parts as there are threads, if the batch can be divided so."""
    batch = len(inputs[0]) if inputs and inputs[0].dim() else 1
    return math.gcd(batch, target.threads)


def _tensors(node: fx.Node) -> Iterator[torch.Tensor]:
    """What a node takes and yields."""
    for each in (*node.all_input_nodes, node):
        value: Any = each.meta.get("val")
        values = value if isinstance(value, (tuple, list)) else (value,)
        yield from (item for item in values if isinstance(item, torch.Tensor))
