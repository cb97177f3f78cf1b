"""OpenVINO: fp32, bf16, and int8 by NNCF with the rest in either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rivals.base import Call, Inputs, OnInputs, Predict, attends


def fp32(model: nn.Module, inputs: Inputs) -> Call:
    return call(converted(model, inputs), inputs, "f32")


def bf16(model: nn.Module, inputs: Inputs) -> Call:
    return call(converted(model, inputs), inputs, "bf16")


def int8_fp32(model: nn.Module, inputs: Inputs) -> Call:
    return call(_quantized(converted(model, inputs), [inputs], attends(model)), inputs, "f32")


def int8_bf16(model: nn.Module, inputs: Inputs) -> Call:
    """bf16 for the rest is OpenVINO's default where the CPU has it."""
    return call(_quantized(converted(model, inputs), [inputs], attends(model)), inputs, "bf16")


def calibrated(model: nn.Module, batches: Sequence[Inputs]) -> tuple[Predict, OnInputs]:
    """NNCF's int8, the rest in fp32: a function of any batch, and what makes calls of one size."""
    quantized = _quantized(imported(model, batches[0]), batches, attends(model))
    return predictor(quantized), lambda inputs: call(
        _fixed(quantized.clone(), inputs), inputs, "f32"
    )


def predictor(model: Any) -> Predict:
    """A function of any batch, in fp32."""
    request = _compiled(model, "f32").create_infer_request()

    def predict(*inputs: torch.Tensor) -> torch.Tensor:
        arrays = {index: tensor.numpy() for index, tensor in enumerate(inputs)}
        return torch.from_numpy(request.infer(arrays)[0])

    return predict


def converted(model: nn.Module, inputs: Inputs) -> Any:
    return _fixed(imported(model, inputs), inputs)


def imported(model: nn.Module, inputs: Inputs) -> Any:
    import openvino as ov

    try:
        return ov.convert_model(model, example_input=inputs)
    except Exception:  # TorchScript, its default way, does not take every model
        return ov.convert_model(torch.export.export(model, inputs))


def _fixed(converted: Any, inputs: Inputs) -> Any:
    """Of the shapes of the inputs."""
    shapes = {port: list(t.shape) for port, t in zip(converted.inputs, inputs, strict=True)}
    converted.reshape(shapes)
    return converted


def _quantized(converted: Any, batches: Sequence[Inputs], attending: bool) -> Any:
    import nncf

    kind = nncf.ModelType.TRANSFORMER if attending else None
    data = nncf.Dataset([tuple(tensor.numpy() for tensor in batch) for batch in batches])
    quantized = nncf.quantize(converted, data, model_type=kind)
    if not any(node.get_type_name() == "FakeQuantize" for node in quantized.get_ops()):
        raise RuntimeError("nothing was quantized")
    return quantized


def _compiled(model: Any, precision: str) -> Any:
    import openvino as ov

    config = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    return ov.Core().compile_model(model, "CPU", config)


def call(model: Any, inputs: Inputs, precision: str) -> Call:
    request = _compiled(model, precision).create_infer_request()
    arrays = {index: tensor.numpy() for index, tensor in enumerate(inputs)}

    def run() -> torch.Tensor:
        outputs = request.infer(arrays, share_inputs=True, share_outputs=True)
        return torch.from_numpy(outputs[0])

    return run
