"""The canonical form: programs, their invariants, and the editor that keeps them."""

from fxopt.ir.attention import ScaledDotProductAttention
from fxopt.ir.edit import Edit
from fxopt.ir.expected import Expected, expected_inputs
from fxopt.ir.leaf import (
    LeafModule,
    is_leaf,
    is_training_only,
    mark_training_only,
    tensor_bytes,
)
from fxopt.ir.ops import is_aten, is_functional, is_random, is_size_arithmetic
from fxopt.ir.paged import paged
from fxopt.ir.program import Program
from fxopt.ir.recurrent_sizes import recurrent_layers_not_walked
from fxopt.ir.result import PassResult
from fxopt.ir.signature import Signature
from fxopt.ir.sizes import size_hint
from fxopt.ir.verify import verify_program

__all__ = [
    "Edit",
    "Expected",
    "LeafModule",
    "PassResult",
    "Program",
    "ScaledDotProductAttention",
    "Signature",
    "expected_inputs",
    "is_aten",
    "is_functional",
    "is_leaf",
    "is_random",
    "is_size_arithmetic",
    "is_training_only",
    "mark_training_only",
    "paged",
    "recurrent_layers_not_walked",
    "size_hint",
    "tensor_bytes",
    "verify_program",
]
