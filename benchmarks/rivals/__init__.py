"""What a user would pick instead of fxopt. One table, one file a runtime."""

from __future__ import annotations

from rivals import onnxruntime, openvino, pt2e, pytorch, torch_int8
from rivals.base import Builder, Call, Inputs, Rival, convolves, linear, timed

__all__ = ["CALIBRATED", "RIVALS", "Builder", "Call", "Inputs", "Rival", "timed"]

_TORCH = (
    Rival("eager", "fp32", pytorch.eager),
    Rival("eager channels-last", "fp32", pytorch.eager_channels_last, suits=convolves),
    Rival("torch.compile", "fp32", pytorch.compiled),
    Rival("torch.compile C++ wrapper", "fp32", pytorch.compiled_cpp),
    Rival("torch.compile max-autotune", "fp32", pytorch.compiled_tuned, autotunes=True),
    Rival("eager bf16", "bf16", pytorch.eager_bf16),
    Rival("torch.compile bf16", "bf16", pytorch.compiled_bf16),
    Rival("torch.compile C++ wrapper bf16", "bf16", pytorch.compiled_cpp_bf16),
    Rival("torch.compile autocast bf16", "bf16", pytorch.compiled_autocast),
    Rival("torch.compile max-autotune bf16", "bf16", pytorch.compiled_tuned_bf16, autotunes=True),
    Rival("torchao pt2e int8", "int8", pt2e.int8),
    Rival("torchao pt2e int8 C++ wrapper", "int8", pt2e.int8_cpp),
    Rival("torchao pt2e int8 autocast bf16", "int8", pt2e.int8_autocast),
    Rival("torchao pt2e int8 lowered", "int8", pt2e.int8_lowered),
    Rival("torchao pt2e int8 max-autotune", "int8", pt2e.int8_tuned, autotunes=True),
    Rival("torchao pt2e dynamic int8", "int8", pt2e.dynamic_int8, suits=linear),
    Rival("torch fx int8 x86", "int8", torch_int8.fx_x86),
    Rival("torch fx int8 onednn", "int8", torch_int8.fx_onednn),
    Rival("torch dynamic int8", "int8", torch_int8.dynamic, suits=linear),
)

_OTHERS = (
    Rival("onnxruntime", "fp32", onnxruntime.fp32),
    Rival("onnxruntime int8", "int8", onnxruntime.int8),
    Rival("onnxruntime int8 matmul only", "int8", onnxruntime.int8_matmul, suits=linear),
    Rival("onnxruntime dynamic int8", "int8", onnxruntime.dynamic_int8, suits=linear),
    Rival("openvino", "fp32", openvino.fp32),
    Rival("openvino bf16", "bf16", openvino.bf16),
    Rival("openvino nncf int8, rest fp32", "int8", openvino.int8_fp32),
    Rival("openvino nncf int8, rest bf16", "int8", openvino.int8_bf16),
)

RIVALS: tuple[Rival, ...] = (
    *_TORCH,
    *(Rival(r.name, r.precision, r.build, torch=False, suits=r.suits) for r in _OTHERS),
)

CALIBRATED = {
    "openvino nncf int8": openvino.calibrated,
    "onnxruntime int8": onnxruntime.calibrated,
    "onnxruntime int8 matmul only": onnxruntime.calibrated_matmul,
    "torchao pt2e int8": pt2e.calibrated,
}
"""Those that quantize a trained model on given batches, by name."""
