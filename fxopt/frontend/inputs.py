"""Checks what the user hands over, and brings it into one form: (args, kwargs)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxopt.errors import InputError
from fxopt.frontend.batches import with_batch

__all__ = ["check_model", "check_place", "normalize_inputs", "own_inputs", "with_batch"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
T = TypeVar("T")
_LAZY = (nn.UninitializedParameter, nn.UninitializedBuffer)


def check_model(model: object) -> None:
    """Refuses what is not a module, or holds weights that are not numbers.

    Buffers may hold negative infinity: masks of attention do.

    Raises:
        InputError: Names the parameters and buffers concerned.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"the model is a {type(model).__name__}, not a torch.nn.Module",
            hint="wrap a function in a module's forward; pass an instance, not a class",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            "the model is TorchScript, which cannot be captured",
            hint="pass the module that it was made from by torch.jit.script or torch.jit.trace",
        )
    _check_values(model)


def _check_values(model: nn.Module) -> None:
    named = (*model.named_parameters(), *model.named_buffers())
    lazy = [name for name, tensor in named if isinstance(tensor, _LAZY)]
    if lazy:
        raise InputError(
            f"the model has parameters without a size yet: {', '.join(lazy[:5])}",
            hint="run it once, which makes its lazy layers, and load or train the weights",
        )
    broken = [name for name, tensor in model.named_parameters() if not _finite(tensor)]
    broken += [name for name, tensor in model.named_buffers() if not _finite(tensor, mask=True)]
    if broken:
        listed = ", ".join(broken[:5]) + (f" and {len(broken) - 5} more" if broken[5:] else "")
        raise InputError(
            f"the model holds NaN or infinite values: {listed}",
            hint="load or train the weights first",
        )


def check_place(model: nn.Module, inputs: Any, device: torch.device) -> None:
    """Refuses a model that lies elsewhere than where it is to run.

    Args:
        model: A module; one that is spread over several devices may have a part there.
        inputs: Any tree of its inputs, which tell where a model without weights runs.
        device: Where.

    Raises:
        InputError: No part of it is there.
    """
    leaves = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    tensors = [*model.parameters(), *model.buffers()] or leaves
    places = {tensor.device.type for tensor in tensors}
    if places and device.type not in places:
        there = sorted(places)
        raise InputError(
            f"the model is on {', '.join(there)}, and it is to run on {device.type}",
            hint=f"move it and its inputs there with .to({device.type!r}), "
            f"or optimize where it is with target={there[0]!r}",
        )


def _finite(tensor: Tensor, mask: bool = False) -> bool:
    """Whether all values are numbers; in a mask, negative infinity is one."""
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if not tensor.numel():
        return True
    values = tensor.detach()
    if values.layout is not torch.strided:
        values = values.to_dense()
    if values.is_complex():
        values = values.abs()
    if values.element_size() == 1:  # 8-bit floats have hardly any operations
        values = values.float()
    # the extremes are much cheaper than a comparison of the whole tensor, and keep NaN
    low, high = values.reshape(-1).aminmax()
    return bool(high < inf) and (mask or bool(low > -inf))


def normalize_inputs(model: nn.Module, example_inputs: object = None) -> Inputs | None:
    """Brings example inputs into the form of a call.

    Args:
        model: The model that takes them.
        example_inputs: A tensor, a tuple or list of positional inputs, or a dict of keyword
            inputs. None looks for what the model itself offers: `example_input_array`
            (Lightning), `dummy_inputs` (transformers), `pretrained_cfg` (timm).

    Returns:
        (args, kwargs), or None when there are none and the model offers none.

    Raises:
        InputError: The inputs do not fit the model's forward, hold no tensor, or lie on another
            device than the model.
    """
    if example_inputs is None:
        example_inputs = offered_inputs(model)
        if example_inputs is None:
            return None
    args, kwargs = _as_call(example_inputs)
    _check_tensors(args, kwargs)
    _check_names(model, args, kwargs)
    _check_devices(model, args, kwargs)
    return args, kwargs


def own_inputs(inputs: T) -> T:
    """Any tree of inputs with tensors of their own: a model may write to what it is given."""
    return pytree.tree_map(_copied, inputs)  # type: ignore[no-any-return]


def offered_inputs(model: nn.Module) -> object:
    """The example inputs that a model offers, None where it offers none."""
    offered = getattr(model, "example_input_array", None)
    if offered is None:
        offered = getattr(model, "dummy_inputs", None)
    if offered is None:
        offered = _image(model)
    return None if offered is None else pytree.tree_map(_Mover(model), offered)


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def _image(model: nn.Module) -> Tensor | None:
    config = getattr(model, "pretrained_cfg", None)
    size = config.get("input_size") if isinstance(config, Mapping) else None
    if size is None:
        return None
    return torch.randn((1, *size), generator=torch.Generator().manual_seed(0))


class _Mover:
    """Moves example inputs to where a model is, in its dtype."""

    def __init__(self, model: nn.Module) -> None:
        floating = [p for p in model.parameters() if p.is_floating_point()]
        self._like = floating[0] if floating else None

    def __call__(self, leaf: Any) -> Any:
        if self._like is None or not isinstance(leaf, Tensor):
            return leaf
        dtype = self._like.dtype if leaf.is_floating_point() else leaf.dtype
        return leaf.to(self._like.device, dtype)


def _as_call(example_inputs: object) -> Inputs:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise InputError(
        f"example_inputs is a {type(example_inputs).__name__}",
        hint="pass a tensor, a tuple of positional inputs or a dict of keyword inputs",
    )


def _check_tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not tensors:
        raise InputError(
            "example_inputs holds no tensor", hint="pass example_inputs=(torch.randn(...),)"
        )


def _check_names(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    signature = inspect.signature(model.forward)
    _check_keywords(model, signature, kwargs)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"example_inputs do not fit {type(model).__name__}.forward: {error}",
            where=f"forward{signature}",
            hint="a dict is passed by keyword, a tuple by position, a lone tensor as the only one",
        ) from error


def _check_keywords(model: nn.Module, signature: inspect.Signature, kwargs: dict[str, Any]) -> None:
    parameters = signature.parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [name for name in kwargs if name not in parameters]
    if unknown:
        close = get_close_matches(unknown[0], parameters, 1)
        raise InputError(
            f"{type(model).__name__}.forward takes no input {unknown[0]!r}",
            where=f"forward{signature}",
            hint=f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(parameters)}",
        )


def _check_devices(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    leaves = pytree.tree_leaves((args, kwargs))
    inputs = {str(leaf.device) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
    weights = {str(p.device) for p in model.parameters()}
    # a model spread over several devices moves its inputs itself
    if len(weights) == 1 and not inputs <= weights:
        device = weights.pop()
        raise InputError(
            f"the inputs are on {', '.join(sorted(inputs))} but the model is on {device}",
            hint=f"move the inputs with .to({device!r}), or the model to the inputs' device",
        )
