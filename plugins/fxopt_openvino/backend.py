"""What OpenVINO can take, and how a program gets there."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from fxopt.plugin import Backend, BackendInfo, Program, Target, Tensors, is_random
from fxopt_openvino.convert import OpenVINOLowering
from fxopt_openvino.tensors import TAKEN

_EXTRA = "pip install 'fxopt[openvino]'"


@dataclass(frozen=True)
class OpenVINO(Backend):
    """Lowers a program to the CPU plugin of OpenVINO.

    Floating-point operations are computed in float32: on CPUs that have bfloat16 the runtime
    would use that unasked, and a program that only exact passes have seen may not change.
    Operations between fake quantizers run in int8.
    """

    info: ClassVar[BackendInfo] = BackendInfo(name="openvino", targets=("cpu",), extra=_EXTRA)

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
        return OpenVINOLowering(program, inputs, target)


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
