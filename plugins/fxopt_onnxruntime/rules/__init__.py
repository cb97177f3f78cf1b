"""The rewriting rules, in the order in which they are applied.

Torch's translation of a quantized program has the right pairs of QuantizeLinear and
DequantizeLinear; ONNX Runtime runs an operation on integers only where they stand in the very
places that its own fusions look at. These rules move them there without changing what is
computed, but for one rounding before some activations.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from fxopt_onnxruntime.graph import Rewriter
from fxopt_onnxruntime.rules.activations import round_before_activations
from fxopt_onnxruntime.rules.channels import fold_channel_scales
from fxopt_onnxruntime.rules.choices import drop_choices
from fxopt_onnxruntime.rules.clamps import drop_clamps
from fxopt_onnxruntime.rules.constants import restore_weights, settle_weights
from fxopt_onnxruntime.rules.conv import lower_convolutions
from fxopt_onnxruntime.rules.linear import lower_linear_layers
from fxopt_onnxruntime.rules.moves import round_after_moves
from fxopt_onnxruntime.rules.patches import lower_patch_convolutions
from fxopt_onnxruntime.rules.pooling import pool_extremes, pool_globally, reduce_integers
from fxopt_onnxruntime.rules.recurrent import (
    drop_zero_states,
    lower_recurrent,
    mark_recurrent,
    merge_directions,
)
from fxopt_onnxruntime.rules.windows import lower_window_convolutions

if TYPE_CHECKING:
    import onnx_ir as ir

_RULES = (
    drop_choices,
    pool_globally,
    round_after_moves,
    round_before_activations,
    fold_channel_scales,
    drop_clamps,
    lower_patch_convolutions,
    lower_window_convolutions,
    pool_extremes,
    reduce_integers,
    lower_linear_layers,
    lower_convolutions,
    drop_zero_states,
    merge_directions,
    lower_recurrent,
    settle_weights,
    round_after_moves,  # again, for what the rules before have added
)


def prepare(model: ir.Model, recurrent: Collection[str]) -> None:
    """What must be done before constants are folded: int8 weights are kept as such.

    Args:
        model: As exported.
        recurrent: Qualified names of recurrent layers that are to compute in int8.
    """
    rewriter = Rewriter(model, "fxopt.weight")
    restore_weights(rewriter)
    mark_recurrent(rewriter, recurrent)


def rewrite(model: ir.Model) -> None:
    """Applies all other rules, and removes what nothing uses any more."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    rewriter = Rewriter(model, "fxopt")
    for rule in _RULES:
        rule(rewriter)
        RemoveUnusedNodesPass()(model)
