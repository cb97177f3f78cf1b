"""What OpenVINO can take, and how a program gets there."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import fx

from fxopt.plugin import Backend, BackendInfo, Program, Target, Tensors, is_random
from fxopt_openvino.convert import OpenVINOLowering
from fxopt_openvino.tensors import TAKEN

Precision = Literal["f32", "bf16"]

_BF16_FEATURES = {"avx512_bf16", "amx_bf16"}
_EXTRA = "pip install 'fxopt[openvino]'"


@dataclass(frozen=True)
class OpenVINO(Backend):
    """Lowers a program to the CPU plugin of OpenVINO.

    Operations between fake quantizers run in int8, the others in ``precision``. On CPUs that have
    bfloat16 the runtime would use that unasked, but a program that only exact passes have seen
    may not change; where a pass was lossy already, bfloat16 is offered as a variant.

    Attributes:
        precision: What floating-point operations are computed in.
    """

    precision: Precision = "f32"

    info: ClassVar[BackendInfo] = BackendInfo(
        name="openvino", targets=("cpu",), extra=_EXTRA, packages=("openvino",)
    )

    @property
    def label(self) -> str:
        """The name, with the precision where it is not float32."""
        return self.info.name if self.precision == "f32" else f"{self.info.name} {self.precision}"

    def variants(self, target: Target, exact: bool) -> Sequence[Backend]:
        """Float32; for lossy programs bfloat16 as well, where the CPU has instructions for it."""
        if exact or not _BF16_FEATURES & set(target.features):
            return (self,)
        return (self, replace(self, precision="bf16"))

    def unavailable(self) -> str | None:
        """Why it cannot be used here; None when it can."""
        if importlib.util.find_spec("openvino") is None:
            return f"openvino is not installed; install it with {_EXTRA}"
        return None

    def unsupported(self, program: Program, target: Target) -> str | None:
        """Why it cannot take ``program``; None when it can."""
        return next(_obstacles(program, target), None)

    def lower(self, program: Program, inputs: Tensors, target: Target) -> OpenVINOLowering:
        """Translates ``program``, once for all batch sizes where that is possible."""
        return OpenVINOLowering(program, inputs, target, self.precision)


def _obstacles(program: Program, target: Target) -> Iterator[str]:
    if target.name not in OpenVINO.info.targets:
        yield f"it lowers to cpu, not to {target.name}"
    if not program.inputs:
        yield "the program has no inputs"
    for node in program.nodes:
        if is_random(node):
            yield f"%{node.name} draws random numbers"
        for tensor in _tensors(node):
            if tensor.dtype not in TAKEN:
                kind = str(tensor.dtype).removeprefix("torch.")
                yield f"%{node.name} is {kind}, which OpenVINO would compute in another precision"


def _tensors(node: fx.Node) -> Iterator[torch.Tensor]:
    value: Any = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    yield from (item for item in values if isinstance(item, torch.Tensor))
