"""Linear layers with weights of four bits, on torch's own product for such."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from fxopt.plugin import Kernel
from fxopt_inductor.lowp.calls import first_argument
from fxopt_inductor.lowp.constants import constant, owner_name
from fxopt_inductor.lowp.writer import Writer

aten = torch.ops.aten

_MIDDLE = 8  # the operator counts codes from here
_LEVELS = 16
_GROUPS = {32, 64, 128, 256}
_ROWS = 16  # outputs come in so many

_CASTS = (aten.to.dtype, aten._to_copy.default)
_FLATTENED = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


@dataclass(frozen=True)
class PackedLayer:
    """A linear layer whose weights are ``(codes - zero) * scale``.

    Attributes:
        name: Its qualified name in the user's model.
        codes: uint8 below 16, of shape (outputs, groups, size of a group).
        scale: Of shape (outputs, groups).
        zero: The code that stands for zero, in the shape of ``scale``.
        bias: One per output, or None.
    """

    name: str
    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    bias: torch.Tensor | None

    def write(self, writer: Writer, x: fx.Node, shape: torch.Size) -> fx.Node:
        """Writes it for a bfloat16 input of that shape; the result is bfloat16 as well."""
        outputs, groups, size = self.codes.shape
        rows = writer.call(aten.reshape.default, x, [math.prod(shape[:-1]), groups * size])
        rows = writer.call(aten.contiguous.default, rows)
        weight = writer.constant(f"{self.name}_weight", self._codes())
        scales = writer.constant(f"{self.name}_scales", self._scales())
        target, kernel = _operator(), Kernel(self.name, "MatMul", "int4")
        result = writer.heavy(kernel, target, rows, weight, size, scales)
        if outputs % _ROWS:
            result = writer.call(aten.slice.Tensor, result, 1, 0, outputs)
        result = writer.call(aten.reshape.default, result, [*shape[:-1], outputs])
        if self.bias is None:
            return result
        bias = writer.constant(f"{self.name}_bias", self.bias.to(torch.bfloat16))
        return writer.call(aten.add.Tensor, result, bias)

    def _codes(self) -> torch.Tensor:
        matrix = F.pad(self.codes.flatten(1), (0, 0, 0, self._missing)).to(torch.int32)
        packed: torch.Tensor = aten._convert_weight_to_int4pack_for_cpu(matrix, 1)
        return packed

    def _scales(self) -> torch.Tensor:
        """Scales, and what the code in the middle stands for, by groups and outputs."""
        middle = (_MIDDLE - self.zero) * self.scale
        both = F.pad(torch.stack([self.scale, middle], -1), (0, 0, 0, 0, 0, self._missing))
        return both.transpose(0, 1).contiguous().to(torch.bfloat16)

    @property
    def _missing(self) -> int:
        """How many outputs there are too few of."""
        return -len(self.codes) % _ROWS


def packed_layer(module: fx.GraphModule, node: fx.Node) -> PackedLayer | None:
    """What a node computes, if it is a linear layer with four-bit weights that torch can take.

    Args:
        module: Holds the weights.
        node: Any node.
    """
    if node.target is not aten.linear.default or node.meta["val"].dtype is not torch.float32:
        return None
    bias_node = node.args[2] if len(node.args) > 2 else None
    bias = constant(module, bias_node)
    read = _weight(module, node.args[1])
    if read is None or _operator() is None or (bias is None and bias_node is not None):
        return None
    name, codes, scale, zero = read
    return PackedLayer(name, codes, scale, zero, bias)


def _weight(
    module: fx.GraphModule, node: Any
) -> tuple[str, torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Name, codes, scales and zeros of weights that are written as a flattened product."""
    product = first_argument(node, _FLATTENED)
    difference, scale_node = _arguments(product, aten.mul.Tensor)
    codes_node, zero_node = _arguments(difference, aten.sub.Tensor)
    codes = constant(module, first_argument(codes_node, _CASTS))
    scale = constant(module, scale_node)
    zero = constant(module, first_argument(zero_node, _CASTS))
    if codes is None or scale is None or zero is None:
        return None
    if codes.dtype is not torch.uint8 or codes.dim() != 3 or codes.shape[2] not in _GROUPS:
        return None
    per_group = (*codes.shape[:2], 1)
    if scale.shape != per_group or zero.shape != per_group or int(codes.max()) >= _LEVELS:
        return None
    source = first_argument(codes_node, _CASTS)
    return owner_name(source), codes, scale.squeeze(2).float(), zero.squeeze(2).float()


def _arguments(node: Any, target: Any) -> tuple[Any, Any]:
    if not isinstance(node, fx.Node) or node.target is not target:
        return None, None
    return node.args[0], node.args[1]


def _operator() -> Any:
    """The product; None where this build of torch lacks it."""
    packet = getattr(aten, "_weight_int4pack_mm_for_cpu", None)
    return getattr(packet, "default", None)
