"""Weights in four bits, in groups of 128: torchao's and NNCF's."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from rivals import openvino
from rivals.base import Call, Inputs, Predict

GROUP = 128


def torchao(model: nn.Module, inputs: Inputs) -> Call:
    """In bfloat16, in which its product of such weights is the fastest."""
    twin = _torchao(model, _weight_only())
    return lambda: twin(*inputs)


def torchao_compiled(model: nn.Module, inputs: Inputs) -> Call:
    return _compiled(_torchao(model, _weight_only()), inputs)


def torchao_rounded(model: nn.Module, inputs: Inputs) -> Call:
    """Activations are rounded to int8 on each call."""
    twin = _torchao(model, _rounded())
    return lambda: twin(*inputs)


def torchao_rounded_compiled(model: nn.Module, inputs: Inputs) -> Call:
    return _compiled(_torchao(model, _rounded()), inputs)


def nncf_f32(model: nn.Module, inputs: Inputs) -> Call:
    """OpenVINO rounds activations in groups of 32 unless it is told not to."""
    return openvino.call(_compressed(openvino.converted(model, inputs)), inputs, "f32")


def nncf_bf16(model: nn.Module, inputs: Inputs) -> Call:
    return openvino.call(_compressed(openvino.converted(model, inputs)), inputs, "bf16")


def predicting_torchao(model: nn.Module, group: int, algorithm: str) -> Predict:
    """A function of any batch; ranges are chosen by ``tinygemm`` or ``hqq``."""
    return _torchao(model, _weight_only(group, algorithm))


def predicting_nncf(model: nn.Module, inputs: Inputs, group: int) -> Predict:
    """A function of any batch."""
    return openvino.predictor(_compressed(openvino.imported(model, inputs), group))


def _torchao(model: nn.Module, config: Any) -> nn.Module:
    from torchao.quantization import quantize_

    twin = copy.deepcopy(model).bfloat16()
    quantize_(twin, config)
    return twin


def _weight_only(group: int = GROUP, algorithm: str = "tinygemm") -> Any:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm

    return PrototypeInt4WeightOnlyConfig(
        group_size=group,
        int4_choose_qparams_algorithm=Int4ChooseQParamsAlgorithm(algorithm),
        set_inductor_config=False,
    )


def _rounded() -> Any:
    from torchao.prototype.quantization.int4 import Int8DynamicActivationInt4WeightConfig

    return Int8DynamicActivationInt4WeightConfig(group_size=GROUP, set_inductor_config=False)


def _compiled(model: nn.Module, inputs: Inputs) -> Call:
    """Not frozen: weights that are subclasses of tensors cannot be."""
    compiled = torch.compile(model, dynamic=False)
    with torch.no_grad():
        compiled(*inputs)
    return lambda: compiled(*inputs)


def _compressed(converted: Any, group: int = GROUP) -> Any:
    import nncf

    mode = nncf.CompressWeightsMode.INT4_ASYM
    return nncf.compress_weights(converted, mode=mode, group_size=group, all_layers=True)
