"""Outputs that are an input: their memory cannot be chosen freely."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino

# Operations that the CPU plugin runs in place, without moving the data.
_IN_PLACE = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Convert", "Result"})


def find_relayed(model: openvino.Model) -> frozenset[int]:
    """The indices of the outputs that are an input, reshaped at most.

    Such an output shares its memory with the input inside the runtime. Were it bound to a tensor
    of ours, the runtime would write to the caller's input.

    Args:
        model: The model before compilation.
    """
    results = enumerate(model.get_results())
    return frozenset(index for index, result in results if _is_input(result))


def _is_input(node: openvino.Node) -> bool:
    while node.get_type_name() in _IN_PLACE:
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "Parameter")
