"""What a user would pick instead of fxopt: each builder returns a call of the built model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...]
Call = Callable[[], torch.Tensor]
Builder = Callable[[nn.Module, Inputs], Call]


def eager(model: nn.Module, inputs: Inputs) -> Call:
    return lambda: model(*inputs)


def torch_compile(model: nn.Module, inputs: Inputs) -> Call:
    """torch.compile with frozen weights, convolutions in channels-last."""
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    twin, given = copy.deepcopy(model), inputs
    if inputs[0].dim() == 4:
        twin = twin.to(memory_format=torch.channels_last)
        given = tuple(t.contiguous(memory_format=torch.channels_last) for t in inputs)
    with inductor.patch(freezing=True), torch.no_grad():
        compiled = torch.compile(twin)
        compiled(*given)
    return lambda: compiled(*given)


def torchao_int8(model: nn.Module, inputs: Inputs) -> Call:
    """PT2E static int8, lowered by Inductor."""
    import torch._inductor.config as inductor
    import torchao.quantization.pt2e as pt2e
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    torch._dynamo.reset()
    exported = torch.export.export(model, inputs, strict=True).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    prepared(*inputs)
    converted = convert_pt2e(prepared)
    pt2e.move_exported_model_to_eval(converted)
    with inductor.patch(freezing=True), torch.no_grad():
        compiled = torch.compile(converted)
        compiled(*inputs)
    return lambda: compiled(*inputs)


def onnxruntime(model: nn.Module, inputs: Inputs) -> Call:
    return _session(_onnx(model, inputs, Path(tempfile.mkdtemp())), inputs)


def onnxruntime_int8(model: nn.Module, inputs: Inputs) -> Call:
    """Static QDQ quantization, per channel."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder = Path(tempfile.mkdtemp())
    source, prepared, result = _onnx(model, inputs, folder), folder / "pre.onnx", folder / "q.onnx"
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared),
        str(result),
        _reader({_input_name(source): inputs[0].numpy()}),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return _session(result, inputs)


def openvino(model: nn.Module, inputs: Inputs) -> Call:
    import openvino as ov

    return _openvino_call(ov.convert_model(model, example_input=inputs), inputs, "f32")


def openvino_int8(model: nn.Module, inputs: Inputs) -> Call:
    """Quantized after training by NNCF."""
    import nncf
    import openvino as ov

    kind = None if inputs[0].dim() == 4 and not _attends(model) else nncf.ModelType.TRANSFORMER
    converted = ov.convert_model(model, example_input=inputs)
    quantized = nncf.quantize(converted, nncf.Dataset([inputs[0].numpy()]), model_type=kind)
    return _openvino_call(quantized, inputs, None)


FP32: dict[str, Builder] = {
    "eager": eager,
    "torch.compile": torch_compile,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}

INT8: dict[str, Builder] = {
    "torchao pt2e int8": torchao_int8,
    "onnxruntime int8": onnxruntime_int8,
    "openvino nncf int8": openvino_int8,
}


def _attends(model: nn.Module) -> bool:
    return any(isinstance(module, nn.MultiheadAttention) for module in model.modules())


def _openvino_call(model: Any, inputs: Inputs, precision: str | None) -> Call:
    import openvino as ov

    config: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    model.reshape([list(t.shape) for t in inputs] if len(inputs) > 1 else list(inputs[0].shape))
    request = ov.Core().compile_model(model, "CPU", config).create_infer_request()
    arrays = {index: t.numpy() for index, t in enumerate(inputs)}
    return lambda: torch.from_numpy(np.array(request.infer(arrays)[0]))


def _onnx(model: nn.Module, inputs: Inputs, folder: Path) -> Path:
    path = folder / "model.onnx"
    torch.onnx.export(model, inputs, str(path), dynamo=True, external_data=False)
    return path


def _session(path: Path, inputs: Inputs) -> Call:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: inputs[0].numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _input_name(path: Path) -> str:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return str(session.get_inputs()[0].name)


def _reader(feed: dict[str, np.ndarray]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class OneBatch(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[dict[str, np.ndarray]] = iter([feed])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    return OneBatch()
