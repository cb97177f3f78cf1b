"""What ONNX Runtime can take, and how a program gets there."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxopt.plugin import Backend, BackendInfo, Program, Target, Tensors, is_random
from fxopt_onnxruntime.convert import ONNXRuntimeLowering
from fxopt_onnxruntime.results import bounded, with_rounded_results
from fxopt_onnxruntime.tensors import TAKEN

aten = torch.ops.aten

_EXTRA = "pip install 'fxopt[onnxruntime]'"
_PACKAGES = ("onnxruntime", "onnx", "onnxscript")


@dataclass(frozen=True)
class ONNXRuntime(Backend):
    """Lowers a program to the CPU kernels of ONNX Runtime.

    Operations between fake quantizers run in int8, the others in float32.

    Attributes:
        spinning: Whether idle threads of the runtime, which wait in a loop within a call, do so
            between calls as well. Then the next call starts some microseconds earlier, and whatever
            else runs on the same cores is slowed down.
        rounded_results: Whether convolutions in int8 whose result stays in float round it, to the
            range that it had on calibration data: the runtime's own kernel for them gives bytes.
            Otherwise they are products of gathered bytes, or in float.
    """

    spinning: bool = False
    rounded_results: bool = False

    info: ClassVar[BackendInfo] = BackendInfo(
        name="onnxruntime", targets=("cpu",), extra=_EXTRA, packages=("onnxruntime", "onnxscript")
    )

    @property
    def label(self) -> str:
        """The name, with the settings that are not the usual ones."""
        settings = ["spinning"] if self.spinning else []
        settings += ["rounded results"] if self.rounded_results else []
        return " ".join([self.info.name, *settings])

    def variants(self, program: Program, target: Target, exact: bool) -> Sequence[Backend]:
        """For lossy programs with convolutions that could round what they yield, that too."""
        if exact or not any(True for _ in bounded(program)):
            return (self,)
        return (self, replace(self, rounded_results=True))

    def unavailable(self) -> str | None:
        """Why it cannot be used here; None when it can."""
        missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            return f"{' and '.join(missing)} {verb} not installed; install with {_EXTRA}"
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
                return f"works on {kind}, for which ONNX Runtime lacks kernels on cpu"
            if free_unbacked_symbols(tensor):
                return "has a size that depends on the data"
        return _without_form(program, node)

    def lower(self, program: Program, inputs: Tensors, target: Target) -> ONNXRuntimeLowering:
        """Translates ``program``, once for all batch sizes where that is possible."""
        if self.rounded_results:
            program = with_rounded_results(program)
        return ONNXRuntimeLowering(program, inputs, target, self.spinning)


def _without_form(program: Program, node: fx.Node) -> str | None:
    """Why torch has no translation of a node that computes the same; None where it has."""
    leaf = program.leaf(node) if node.op == "call_module" else None
    if isinstance(leaf, nn.LSTM) and leaf.proj_size:
        return "projects its states, which ONNX has no LSTM for"
    is_average = node.target in (aten.avg_pool2d.default, aten.avg_pool3d.default)
    if is_average and (node.args[6:] or (None,))[0] is not None:
        return "divides by a number of its own, which is lost on the way to ONNX"
    return None


def _tensors(node: fx.Node) -> Iterator[torch.Tensor]:
    """What a node takes and yields."""
    for each in (*node.all_input_nodes, node):
        value: Any = each.meta.get("val")
        values = value if isinstance(value, (tuple, list)) else (value,)
        yield from (item for item in values if isinstance(item, torch.Tensor))
