"""Int8 layers that round what they take row by row: the runtime does that itself, in groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino

_LIMITS = (-127, 127)
_UNPACKING = {"Multiply", "Subtract", "Convert", "Reshape", "Transpose"}


def leave_rounding(model: openvino.Model) -> None:
    """Takes the rounding of rows to int8 out of a model, ``clamp(round(x / scale)) * scale``.

    In front of weights in few bits the runtime rounds to int8 as it multiplies, by groups of
    neighbours, where it is told to; see ``Settings.rounded_group``. What anything else takes as
    well is a rounding of the user's, and stays.

    Args:
        model: It is changed.
    """
    for operation in model.get_ops():
        source = _rounded(operation)
        takers = operation.output(0).get_target_inputs()
        if source is not None and all(_rounds_itself(taker.get_node()) for taker in takers):
            for taker in takers:
                taker.replace_source_output(source)


def _rounded(operation: openvino.Node) -> openvino.Output | None:
    """What is rounded; None where that is not what an operation ends."""
    if operation.get_type_name() != "Multiply":
        return None
    chain = [operation]
    for kind in ("Clamp", "Round", "Divide"):
        chain.append(chain[-1].input_value(0).get_node())
        if chain[-1].get_type_name() != kind:
            return None
    divided, clamp = chain[-1], chain[1].get_attributes()
    if (clamp["min"], clamp["max"]) != _LIMITS:
        return None
    same_scale = divided.input_value(1) == operation.input_value(1)
    return divided.input_value(0) if same_scale else None


def _rounds_itself(taker: openvino.Node) -> bool:
    """Whether an operation multiplies with weights that are stored as integers."""
    if taker.get_type_name() != "MatMul":
        return False
    weight = taker.input_value(1).get_node()
    while weight.get_type_name() in _UNPACKING:
        weight = weight.input_value(0).get_node()
    return weight.get_type_name() == "Constant" and bool(weight.get_element_type().is_integral())
