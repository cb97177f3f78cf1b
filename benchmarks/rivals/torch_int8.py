"""torch's older int8: FX graph mode and dynamic quantization, run by its quantized operators."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from rivals.base import Call, Inputs


def fx_x86(model: nn.Module, inputs: Inputs) -> Call:
    return _fx(model, inputs, "x86")


def fx_onednn(model: nn.Module, inputs: Inputs) -> Call:
    return _fx(model, inputs, "onednn")


def dynamic(model: nn.Module, inputs: Inputs) -> Call:
    """Linear and LSTM layers, ranges of activations found at run time."""
    from torch.ao.quantization import quantize_dynamic

    with _engine("x86"):
        quantized = quantize_dynamic(copy.deepcopy(model), {nn.Linear, nn.LSTM}, torch.qint8)
    return lambda: quantized(*inputs)


def _fx(model: nn.Module, inputs: Inputs, engine: str) -> Call:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    with _engine(engine):
        mapping = get_default_qconfig_mapping(engine)
        prepared = prepare_fx(copy.deepcopy(model), mapping, inputs)
        prepared(*inputs)
        converted = convert_fx(prepared)
    return lambda: converted(*inputs)


@contextmanager
def _engine(name: str) -> Iterator[None]:
    """The engine decides how weights are packed; what is packed then runs without it."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
