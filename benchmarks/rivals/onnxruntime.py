"""ONNX Runtime: fp32, and int8 by its own quantizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rivals.base import Call, Inputs, OnInputs, Predict, any_batch

_PRODUCTS = ("Conv", "Gemm", "MatMul")


def fp32(model: nn.Module, inputs: Inputs) -> Call:
    with tempfile.TemporaryDirectory() as folder:
        return _call(_export(model, inputs, Path(folder)), inputs)


def int8(model: nn.Module, inputs: Inputs) -> Call:
    """Static quantize and dequantize pairs, weights per channel."""
    return _static(model, inputs, None)


def int8_matmul(model: nn.Module, inputs: Inputs) -> Call:
    """Static, convolutions and matrix products alone: more accurate where the model attends."""
    return _static(model, inputs, _PRODUCTS)


def dynamic_int8(model: nn.Module, inputs: Inputs) -> Call:
    """Ranges of activations found at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared, result = _prepared(model, inputs, folder), folder / "int8.onnx"
        quantize_dynamic(prepared, result, per_channel=True, weight_type=QuantType.QInt8)
        return _call(result, inputs)


def calibrated_matmul(model: nn.Module, batches: Sequence[Inputs]) -> tuple[Predict, OnInputs]:
    """As :func:`int8_matmul`."""
    return calibrated(model, batches, _PRODUCTS)


def calibrated(
    model: nn.Module, batches: Sequence[Inputs], operators: Sequence[str] | None = None
) -> tuple[Predict, OnInputs]:
    """Static int8: a function of any batch, and what makes calls of one size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = _prepared(model, batches[0], folder, any_batch(batches[0]))
        session = _session(_quantized(prepared, batches, operators))

    def predict(*inputs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, _feed(session, inputs))[0])

    def on(inputs: Inputs) -> Call:
        feed = _feed(session, inputs)
        return lambda: torch.from_numpy(session.run(None, feed)[0])

    return predict, on


def _static(model: nn.Module, inputs: Inputs, operators: Sequence[str] | None) -> Call:
    with tempfile.TemporaryDirectory() as name:
        prepared = _prepared(model, inputs, Path(name))
        return _call(_quantized(prepared, [inputs], operators), inputs)


def _quantized(prepared: Path, batches: Sequence[Inputs], operators: Sequence[str] | None) -> Path:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    session, result = _session(prepared), prepared.with_name("int8.onnx")
    quantize_static(
        prepared,
        result,
        _reader([_feed(session, batch) for batch in batches]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=operators and list(operators),
    )
    return result


def _prepared(model: nn.Module, inputs: Inputs, folder: Path, shapes: Any = None) -> Path:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source, result = _export(model, inputs, folder, shapes), folder / "prepared.onnx"
    try:
        quant_pre_process(source, result)
    except Exception:  # symbolic shapes are inferred for some operators only
        quant_pre_process(source, result, skip_symbolic_shape=True)
    return result


def _export(model: nn.Module, inputs: Inputs, folder: Path, shapes: Any = None) -> Path:
    path = folder / "model.onnx"
    torch.onnx.export(
        model,
        inputs,
        str(path),
        dynamo=True,
        external_data=False,
        verbose=False,
        dynamic_shapes=shapes,
    )
    return path


def _session(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads may spin within a call, as they do by default, but not on into the next one's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _feed(session: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    names = (given.name for given in session.get_inputs())
    return {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}


def _call(path: Path, inputs: Inputs) -> Call:
    session = _session(path)
    feed = _feed(session, inputs)
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _reader(feeds: Sequence[dict[str, np.ndarray]]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Batches(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches: Iterator[dict[str, np.ndarray]] = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    return Batches()
