"""From a user's model and example inputs to programs in module form."""

from fxopt.frontend.batches import another_size, batch_size, with_batch
from fxopt.frontend.capture import Captured, capture_compared, capture_program
from fxopt.frontend.inputs import check_model, check_place, normalize_inputs, own_inputs
from fxopt.frontend.parts import GuardedPart, PartialCapture, capture_parts
from fxopt.frontend.structure import (
    buffers_restored,
    random_state_restored,
    set_apart,
    structural_copy,
)

__all__ = [
    "Captured",
    "GuardedPart",
    "PartialCapture",
    "another_size",
    "batch_size",
    "buffers_restored",
    "capture_compared",
    "capture_parts",
    "capture_program",
    "check_model",
    "check_place",
    "normalize_inputs",
    "own_inputs",
    "random_state_restored",
    "set_apart",
    "structural_copy",
    "with_batch",
]
