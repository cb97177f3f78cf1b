"""A structural copy of a model: its own modules, hooks and flags, but the user's very tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from fxopt.errors import CaptureError


def structural_copy(model: nn.Module) -> nn.Module:
    """Copies the modules of a model, but shares its parameters and buffers.

    The frontend sets flags and hooks on the copy, so that the user's model is never touched.

    Args:
        model: Any module.

    Returns:
        A copy in eval mode whose parameters and buffers are the same objects as the model's; but
        for those made in inference mode, which are copied, as only that mode takes them.

    Raises:
        CaptureError: The model holds something that Python cannot copy.
    """
    shared = {id(tensor): _usable(tensor) for tensor in _shared_tensors(model)}
    try:
        copied: nn.Module = copy.deepcopy(model, shared)
    except Exception as error:
        raise CaptureError(
            f"the structure of {type(model).__name__} cannot be copied: {error}",
            hint="make sure that copy.deepcopy(model) works (no locks, files or generators in it)",
        ) from error
    return copied.eval()


def _usable(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that gradients may pass, or whatever else a tracer records."""
    if not tensor.is_inference() or torch.is_inference_mode_enabled():
        return tensor
    copied = tensor.detach().clone()
    return (
        nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied
    )


def _shared_tensors(model: nn.Module) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        # deepcopy refuses tensors with a history, such as the weight of an old-style spectral norm
        attributes = vars(module).values()
        yield from (t for t in attributes if isinstance(t, torch.Tensor) and not t.is_leaf)


def set_apart(modules: Iterable[nn.Module], model: nn.Module) -> None:
    """Keeps what is done to some modules from ``model``, although they share memory.

    Parameters become objects of their own, so that ``half``, ``to`` and ``requires_grad_`` leave
    ``model`` as it is. Buffers, to which a model may write as it runs, are copied. What the modules
    share with each other they go on sharing.

    Args:
        modules: They are changed.
        model: The user's; it is not changed.
    """
    memo: dict[int, Any] = {id(each): each.detach().clone() for each in model.buffers()}
    for each in model.parameters():
        memo[id(each)] = nn.Parameter(_usable(each).detach(), each.requires_grad)
    for child in chain.from_iterable(module.modules() for module in modules):
        child._parameters.update({n: memo.get(id(t), t) for n, t in child._parameters.items()})
        child._buffers.update({n: memo.get(id(t), t) for n, t in child._buffers.items()})


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Undoes, at the end, what running the model did to its buffers: they are the user's."""
    saved = [(buffer, _version(buffer), buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, version, value in saved:
            if version is None or buffer._version != version:
                with torch.no_grad(), torch.inference_mode(buffer.is_inference()):
                    buffer.copy_(value)


def _version(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written to; None where that is not counted, in inference mode."""
    return None if tensor.is_inference() else tensor._version


@contextmanager
def random_state_restored(seed: int | None = None) -> Iterator[None]:
    """Leaves the global random generators as they were; seeds them inside if asked to."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield


@contextmanager
def fast_path_off() -> Iterator[None]:
    """Keeps the fused kernels of nn.MultiheadAttention, which hide its structure, out."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
