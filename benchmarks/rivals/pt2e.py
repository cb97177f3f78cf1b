"""torchao's PT2E int8 for x86: exported, calibrated on the inputs, compiled by Inductor."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import nn

from rivals.base import Call, Inputs, OnInputs, Predict
from rivals.inductor import Compiled


def int8(model: nn.Module, inputs: Inputs) -> Call:
    return Compiled(_quantized(model, inputs), inputs)


def int8_cpp(model: nn.Module, inputs: Inputs) -> Call:
    return Compiled(_quantized(model, inputs), inputs, cpp_wrapper=True)


def int8_autocast(model: nn.Module, inputs: Inputs) -> Call:
    """What is not int8 in bf16."""
    return Compiled(_quantized(model, inputs), inputs, autocast=True)


def int8_tuned(model: nn.Module, inputs: Inputs) -> Call:
    return Compiled(_quantized(model, inputs), inputs, mode="max-autotune")


def int8_lowered(model: nn.Module, inputs: Inputs) -> Call:
    """torchao's own lowering to oneDNN operators, called one by one."""
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

    lowered = lower_pt2e_quantized_to_x86(_quantized(model, inputs), inputs)
    if not any("onednn.q" in str(node.target) for node in lowered.graph.nodes):
        raise RuntimeError("no operation was lowered to int8")
    return lambda: lowered(*inputs)


def dynamic_int8(model: nn.Module, inputs: Inputs) -> Call:
    """Linear layers alone, ranges of activations found at run time."""
    return Compiled(_quantized(model, inputs, dynamic=True), inputs)


def calibrated(model: nn.Module, batches: Sequence[Inputs]) -> tuple[Predict, OnInputs]:
    """Its pairs run by eager torch, and what compiles them for one size.

    Each size of batch is exported and calibrated anew: with a symbolic one, not every model
    comes through.
    """
    whole = [torch.cat(parts) for parts in zip(*batches, strict=True)]

    @functools.cache
    def sized(size: int) -> torch.fx.GraphModule:
        parts = list(zip(*(tensor.split(size) for tensor in whole), strict=True))
        full = [part for part in parts if len(part[0]) == size]
        return _quantized(model, full[0], batches=full)

    def predict(*inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = sized(len(inputs[0]))(*inputs)
        return output

    return predict, lambda inputs: Compiled(sized(len(inputs[0])), inputs, cpp_wrapper=True)


def _quantized(
    model: nn.Module,
    inputs: Inputs,
    dynamic: bool = False,
    batches: Sequence[Inputs] = (),
) -> torch.fx.GraphModule:
    """Calibrated on ``batches``, by default the inputs that it is exported for."""
    import torchao.quantization.pt2e as pt2e
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # strict: the quantizer does not find its patterns in what the other way exports
    exported = torch.export.export(model, inputs, strict=True).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    prepared = prepare_pt2e(exported, quantizer)
    for batch in batches or [inputs]:
        prepared(*batch)
    converted = convert_pt2e(prepared)
    if not any("quantize_per" in str(node.target) for node in converted.graph.nodes):
        raise RuntimeError("nothing was quantized")
    pt2e.move_exported_model_to_eval(converted)
    return converted
