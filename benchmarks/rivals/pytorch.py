"""torch's own ways: eager and torch.compile, in fp32 and bf16."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rivals.base import Call, Inputs
from rivals.inductor import Compiled


def eager(model: nn.Module, inputs: Inputs) -> Call:
    return lambda: model(*inputs)


def eager_channels_last(model: nn.Module, inputs: Inputs) -> Call:
    twin, given = channels_last(model, inputs)
    return lambda: twin(*given)


def eager_bf16(model: nn.Module, inputs: Inputs) -> Call:
    twin, given = _bf16(model, inputs)
    return lambda: twin(*given)


def compiled(model: nn.Module, inputs: Inputs) -> Call:
    return Compiled(*channels_last(model, inputs))


def compiled_cpp(model: nn.Module, inputs: Inputs) -> Call:
    """Dispatch written in C++ too: less overhead on small layers."""
    return Compiled(*channels_last(model, inputs), cpp_wrapper=True)


def compiled_tuned(model: nn.Module, inputs: Inputs) -> Call:
    return Compiled(*channels_last(model, inputs), mode="max-autotune")


def compiled_bf16(model: nn.Module, inputs: Inputs) -> Call:
    return Compiled(*_bf16(model, inputs))


def compiled_cpp_bf16(model: nn.Module, inputs: Inputs) -> Call:
    return Compiled(*_bf16(model, inputs), cpp_wrapper=True)


def compiled_autocast(model: nn.Module, inputs: Inputs) -> Call:
    return Compiled(*channels_last(model, inputs), autocast=True)


def compiled_tuned_bf16(model: nn.Module, inputs: Inputs) -> Call:
    return Compiled(*_bf16(model, inputs), mode="max-autotune")


def channels_last(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A copy of an image model, and its inputs, in the layout that convolutions like best."""
    twin = copy.deepcopy(model)
    if inputs[0].dim() != 4:
        return twin, inputs
    given = tuple(t.contiguous(memory_format=torch.channels_last) for t in inputs)
    return twin.to(memory_format=torch.channels_last), given


def _bf16(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    twin, given = channels_last(model, inputs)
    return twin.bfloat16(), tuple(t.bfloat16() if t.is_floating_point() else t for t in given)
