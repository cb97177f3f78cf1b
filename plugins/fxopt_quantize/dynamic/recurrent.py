"""Reference module: recurrent layers in int8, with ranges found on each call and step."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fxopt_quantize.dynamic.cells import CELLS
from fxopt_quantize.dynamic.modules import rounded_whole
from fxopt_quantize.formats import INT8
from fxopt_quantize.weight_only.recurrent import WeightOnlyRecurrent, matrices
from fxopt_quantize.weight_only.stored import StoredWeight
from fxopt_quantize.weights import quantize_weight, weight_refusal

_ZERO = 1 << (INT8.bits - 1)


def recurrent_refusal(layer: nn.RNNBase) -> str | None:
    """Why a recurrent layer cannot compute in int8; None when it can."""
    if layer.proj_size:
        return "LSTMs with projections have no int8 kernels"
    reasons = (weight_refusal(weight) for weight in matrices(layer).values())
    return next((reason for reason in reasons if reason is not None), None)


class RowStore:
    """Makes matrices in int8, each row with a scale; what layers share stays shared."""

    def __init__(self) -> None:
        self._made: dict[torch.Tensor, StoredWeight] = {}  # tensors are hashed by identity

    def stored(self, layer: nn.RNNBase) -> dict[str, StoredWeight]:
        """The matrices of a recurrent layer by name."""
        return {name: self._one(weight) for name, weight in matrices(layer).items()}

    def _one(self, weight: torch.Tensor) -> StoredWeight:
        if weight not in self._made:
            found = quantize_weight(weight)
            codes = (found.values.to(torch.int16) + _ZERO).to(torch.uint8)
            zero_point = torch.full_like(found.scale[..., None], _ZERO, dtype=torch.uint8)
            scale, columns = found.scale[..., None], weight.shape[1]
            self._made[weight] = StoredWeight(codes, scale, zero_point, INT8.bits, columns)
        return self._made[weight]


class DynamicRecurrent(WeightOnlyRecurrent):
    """An LSTM, GRU or RNN whose matrix products are in int8; an LSTM has no projection.

    Matrices have a scale for each row. What they are multiplied with is rounded to 256 levels,
    from its smallest to its largest value and zero among them: the input of a level as a whole,
    and the hidden state of a batch anew at each step. Other runtimes are handed the layer in float
    with rounded matrices; those that have int8 kernels for it know it by ``family`` and
    ``precision``.
    """

    family = "recurrent"
    precision = "int8"

    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        pair = self.mode == "LSTM"
        states = torch.stack(tuple(state)) if pair else state[None]
        x = x.transpose(0, 1) if self.settings["batch_first"] else x
        suffixes = ("", "_reverse") if self.settings["bidirectional"] else ("",)
        last: list[torch.Tensor] = []
        for level in range(self.settings["num_layers"]):
            outputs = []
            for suffix in suffixes:
                weights = self._weights(f"l{level}{suffix}", x)
                begin = states[:, len(last)]
                output, end = direction(x, begin, *weights, self.mode, reverse=bool(suffix))
                outputs.append(output)
                last.append(end)
            x = torch.cat(outputs, -1)
        x = x.transpose(0, 1) if self.settings["batch_first"] else x
        ends = torch.stack(last, 1).unbind()
        return x, ends if pair else ends[0]

    def products(self, given: torch.Tensor, value: torch.Tensor) -> float:
        """Multiply-adds of a call."""
        sizes: list[int] = [getattr(self, f"{name}_packed").numel() for name in self.groups]
        return float(given.shape[:2].numel()) * sum(sizes)

    def _weights(self, part: str, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Both matrices of one level and direction, then both biases."""
        matrices = [self._weight(f"weight_{kind}_{part}") for kind in ("ih", "hh")]
        if self.settings["bias"]:
            return *matrices, *(self._weight(f"bias_{kind}_{part}") for kind in ("ih", "hh"))
        zeros = like.new_zeros(len(matrices[0]))
        return *matrices, zeros, zeros


# One operator, since a loop over steps could not be traced where their number is symbolic.
@torch.library.custom_op("fxopt_quantize::recurrent_direction", mutates_args=())
def direction(
    x: torch.Tensor,
    states: torch.Tensor,
    weight: torch.Tensor,
    recurrent: torch.Tensor,
    bias: torch.Tensor,
    recurrent_bias: torch.Tensor,
    mode: str,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One level of a recurrent layer in one direction, steps first.

    Returns:
        The hidden states of all steps, and the last states.
    """
    given = F.linear(rounded_whole(x), weight, bias)
    current = states.unbind()
    outputs = x.new_empty(*x.shape[:2], states.shape[-1])
    order = range(len(x) - 1, -1, -1) if reverse else range(len(x))
    for step in order:
        product = F.linear(rounded_whole(current[0]), recurrent, recurrent_bias)
        current = CELLS[mode](given[step], product, current)
        outputs[step] = current[0]
    return outputs, torch.stack(current)


@direction.register_fake
def _(
    x: torch.Tensor,
    states: torch.Tensor,
    weight: torch.Tensor,
    recurrent: torch.Tensor,
    bias: torch.Tensor,
    recurrent_bias: torch.Tensor,
    mode: str,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = x.new_empty(*x.shape[:2], states.shape[-1])
    return outputs, torch.empty_like(states, memory_format=torch.contiguous_format)
