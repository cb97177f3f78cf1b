"""OpenVINO: fp32, bf16, and int8 by NNCF with the rest in either."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rivals.base import Call, Inputs, attends


def fp32(model: nn.Module, inputs: Inputs) -> Call:
    return _call(_converted(model, inputs), inputs, "f32")


def bf16(model: nn.Module, inputs: Inputs) -> Call:
    return _call(_converted(model, inputs), inputs, "bf16")


def int8_fp32(model: nn.Module, inputs: Inputs) -> Call:
    return _call(_quantized(model, inputs), inputs, "f32")


def int8_bf16(model: nn.Module, inputs: Inputs) -> Call:
    """bf16 for the rest is OpenVINO's default where the CPU has it."""
    return _call(_quantized(model, inputs), inputs, "bf16")


def _converted(model: nn.Module, inputs: Inputs) -> Any:
    import openvino as ov

    try:
        converted = ov.convert_model(model, example_input=inputs)
    except Exception:  # TorchScript, its default way, does not take every model
        converted = ov.convert_model(torch.export.export(model, inputs))
    shapes = {port: list(t.shape) for port, t in zip(converted.inputs, inputs, strict=True)}
    converted.reshape(shapes)
    return converted


def _quantized(model: nn.Module, inputs: Inputs) -> Any:
    import nncf

    kind = nncf.ModelType.TRANSFORMER if attends(model) else None
    data = nncf.Dataset([tuple(tensor.numpy() for tensor in inputs)])
    quantized = nncf.quantize(_converted(model, inputs), data, model_type=kind)
    if not any(node.get_type_name() == "FakeQuantize" for node in quantized.get_ops()):
        raise RuntimeError("nothing was quantized")
    return quantized


def _call(model: Any, inputs: Inputs, precision: str) -> Call:
    import openvino as ov

    config = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = ov.Core().compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    arrays = {index: tensor.numpy() for index, tensor in enumerate(inputs)}

    def call() -> torch.Tensor:
        outputs = request.infer(arrays, share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs[0])

    return call
