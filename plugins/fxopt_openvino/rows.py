"""Int8 layers that round what they take row by row: the runtime does that itself, in groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino


def leave_rounding(model: openvino.Model) -> None:
    """Takes the rounding of rows out of a model, ``clamp(round(x / scale)) * scale``.

    In front of weights in few bits the runtime rounds to int8 as it multiplies, by groups of
    neighbours, where it is told to; see ``Settings.rounded_group``.

    Args:
        model: It is changed.
    """
    for operation in model.get_ops():
        source = _rounded(operation)
        if source is not None:
            for taker in operation.output(0).get_target_inputs():
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
    divided = chain[-1]
    same_scale = divided.input_value(1) == operation.input_value(1)
    return divided.input_value(0) if same_scale else None
