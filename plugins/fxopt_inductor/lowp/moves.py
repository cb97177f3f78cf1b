"""Operations that move or select values and compute nothing: any representation will do."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

_MOVING = {
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.permute.default,
    aten.transpose.int,
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.dropout.default,
    aten.expand.default,
    aten.expand_as.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.narrow.default,
    aten.chunk.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    aten.channel_shuffle.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.upsample_nearest2d.vec,
    aten.flip.default,
    aten.roll.default,
    operator.getitem,
}
# They have no kernels for uint8.
_IN_FLOAT = {
    aten.max_pool1d.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
}
_JOINING = {aten.cat.default, aten.stack.default}
_POOLING = {aten.max_pool2d.default, aten.max_pool3d.default}
_PADDING = {aten.constant_pad_nd.default, aten.pad.default}


def moved(node: fx.Node) -> list[fx.Node] | None:
    """The inputs whose values a node passes on; None when it computes something.

    Args:
        node: Any node that calls a function.
    """
    target: Any = node.target
    if target in _JOINING:
        return list(node.args[0])  # type: ignore[arg-type]
    if target is aten.dropout.default and node.args[2]:
        return None
    if target is aten.constant_pad_nd.default and not _pads_with_zeros(node):
        return None
    if target is aten.pad.default and _pad_mode(node) == "constant" and not _pads_with_zeros(node):
        return None
    if target in _MOVING | _POOLING | _PADDING | _IN_FLOAT:
        source = node.args[0]
        return [source] if isinstance(source, fx.Node) else None
    return None


def works_on_codes(node: fx.Node, compiled: bool) -> bool:
    """Whether a node that passes values on can do so with uint8.

    Args:
        node: It is known to pass values on.
        compiled: Whether a compiler writes the kernels; eager ones are not there for all.
    """
    if node.target in _IN_FLOAT or (node.target is aten.pad.default and not _pads_with_zeros(node)):
        return False
    if compiled or node.target not in _POOLING:
        return True
    return node.target is aten.max_pool2d.default and _quantized_pool() is not None


def on_codes(node: fx.Node, zero_point: int, pools: bool) -> None:
    """Turns a copy of a node that passes values on into one that does so with codes.

    Args:
        node: Its first argument yields codes already.
        zero_point: The code of zero.
        pools: Whether torch's operator pools maxima, where there is one.
    """
    if node.target in _PADDING:
        node.target, node.kwargs = aten.constant_pad_nd.default, {}
        node.args = (*node.args[:2], zero_point)
    elif node.target is aten.max_pool2d.default and pools and _quantized_pool() is not None:
        # aten's own kernel counts positions in the dtype of the values: 255 is its limit
        node.target, node.args = _quantized_pool(), (node.args[0], *_pool_arguments(node))


def _quantized_pool() -> Any:
    return getattr(torch.ops.quantized, "max_pool2d", None)


def _pool_arguments(node: fx.Node) -> tuple[Any, ...]:
    names = ("kernel", "stride", "padding", "dilation", "ceil")
    given: dict[str, Any] = dict(zip(names, node.args[1:], strict=False))
    kernel = _pair(given["kernel"])
    stride = _pair(given.get("stride") or kernel)
    padding, dilation = _pair(given.get("padding", 0)), _pair(given.get("dilation", 1))
    return (kernel, stride, padding, dilation, bool(given.get("ceil", False)))


def _pads_with_zeros(node: fx.Node) -> bool:
    if node.target is aten.constant_pad_nd.default:
        value = node.args[2] if len(node.args) > 2 else node.kwargs.get("value")
        return value in (None, 0)
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return _pad_mode(node) == "constant" and value in (None, 0)


def _pad_mode(node: fx.Node) -> Any:
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values
