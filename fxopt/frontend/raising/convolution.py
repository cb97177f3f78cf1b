"""Convolutions."""

from __future__ import annotations

from torch import nn
from torch.fx import Node

from fxopt.frontend.raising.context import Context, bind, is_constant

_FORWARD = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_TRANSPOSED = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}


def raise_convolution(context: Context, node: Node) -> None:
    """Raises conv1d, conv2d and conv3d, also with "same" or "valid" padding."""
    a = bind(node)
    settings = {key: a[key] for key in ("stride", "padding", "dilation")}
    weight = context.parameter(a["weight"])
    if weight is None or not context.learned(a["weight"], a["bias"]) or not is_constant(settings):
        return
    rank = weight.dim()
    settings = {k: v if isinstance(v, str) else _tuple(v, rank - 2) for k, v in settings.items()}
    tensors = {"weight": a["weight"], "bias": a["bias"]}
    leaf = context.leaf(
        context.owner_name(node, tensors),
        _FORWARD[rank],
        tensors,
        in_channels=weight.shape[1] * a["groups"],
        out_channels=weight.shape[0],
        kernel_size=tuple(weight.shape[2:]),
        groups=a["groups"],
        bias=a["bias"] is not None,
        **settings,
    )
    context.replace(node, leaf, a["input"])


def raise_transposed(context: Context, node: Node) -> None:
    """Raises conv_transpose1d, 2d and 3d."""
    a = bind(node)
    settings = {k: a[k] for k in ("stride", "padding", "output_padding", "dilation")}
    weight = context.parameter(a["weight"])
    if weight is None or not context.learned(a["weight"], a["bias"]) or not is_constant(settings):
        return
    rank = weight.dim()
    tensors = {"weight": a["weight"], "bias": a["bias"]}
    leaf = context.leaf(
        context.owner_name(node, tensors),
        _TRANSPOSED[rank],
        tensors,
        in_channels=weight.shape[0],
        out_channels=weight.shape[1] * a["groups"],
        kernel_size=tuple(weight.shape[2:]),
        groups=a["groups"],
        bias=a["bias"] is not None,
        **{key: _tuple(value, rank - 2) for key, value in settings.items()},
    )
    context.replace(node, leaf, a["input"])


def _tuple(value: object, length: int) -> tuple[int, ...]:
    """A setting per dimension: the schema allows one number for all."""
    listed = [value] if isinstance(value, int) else list(value)  # type: ignore[call-overload]
    return tuple(listed * length if len(listed) == 1 else listed)
