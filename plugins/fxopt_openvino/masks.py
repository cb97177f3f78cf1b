"""Attention whose mask may leave a query without keys: torch yields zeros for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino

_MASK = 3  # which input of the operator it is


def zero_unattended(model: openvino.Model) -> None:
    """Puts zeros behind attention, where a mask leaves a query no key.

    The runtime takes the softmax of nothing there, which is no number. Masks that are constants
    and leave each query a key need nothing.

    Args:
        model: It is changed.
    """
    from openvino import opset15 as ops

    for index, operation in enumerate(model.get_ops()):
        if operation.get_type_name() != "ScaledDotProductAttention" or not _may_close(operation):
            continue
        result = operation.output(0)
        takers = result.get_target_inputs()
        leaves = _leaves_keys(operation.input_value(_MASK))
        zero = ops.constant(0.0, result.get_element_type())
        selected = ops.select(leaves, result, zero, name=f"unattended_{index}").output(0)
        for taker in takers:
            taker.replace_source_output(selected)


def _may_close(attention: openvino.Node) -> bool:
    if attention.get_input_size() <= _MASK:
        return False
    mask = attention.input_value(_MASK)
    constant = mask.get_node()
    if constant.get_type_name() != "Constant":
        return True
    if not mask.get_partial_shape().rank.get_length():  # stands for a mask that is left out
        return False
    return not bool((constant.data > _floor(mask)).any(-1).all())


def _floor(mask: openvino.Output) -> float:
    """What a mask has where a key is not to be seen."""
    return 0 if mask.get_element_type().to_string() == "boolean" else -math.inf


def _leaves_keys(mask: openvino.Output) -> openvino.Node:
    """For each query, whether a mask lets it see any key."""
    from openvino import opset15 as ops

    if mask.get_element_type().to_string() != "boolean":
        # compared before it is reduced: the runtime's largest of nothing but -inf is finite
        mask = ops.greater(mask, ops.constant(-math.inf, mask.get_element_type())).output(0)
    return ops.reduce_logical_or(mask, -1, keep_dims=True)
