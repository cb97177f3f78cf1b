"""Averages over windows that OpenVINO takes in another way than torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_AVERAGES = {aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default}
_SETTINGS = ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def counts_differently(node: fx.Node) -> str | None:
    """Why the runtime would divide by another number than torch; None where it does not.

    Args:
        node: Any node.
    """
    if node.target not in _AVERAGES:
        return None
    given: dict[str, Any] = dict(zip(_SETTINGS, node.args[1:], strict=False)) | node.kwargs
    if given.get("divisor_override") is not None:
        return "divides by a number of its own, which OpenVINO has no operation for"
    padding = given.get("padding", 0)
    padded = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
    if padded and given.get("ceil_mode", False) and given.get("count_include_pad", True):
        return "counts padding in windows over the edge, which OpenVINO does otherwise"
    return None
