"""Reference module: an LSTM in int8 that finds the range of what it takes on each call and step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from fxopt_quantize.dynamic.modules import rounded_whole
from fxopt_quantize.weight_only.recurrent import WeightOnlyRecurrent, matrices
from fxopt_quantize.weight_only.stored import StoredWeight
from fxopt_quantize.weights import quantize_weight, weight_refusal

_BITS, _ZERO = 8, 128

Pair = tuple[torch.Tensor, torch.Tensor]


def recurrent_refusal(layer: nn.RNNBase) -> str | None:
    """Why a recurrent layer cannot compute in int8; None when it can."""
    if not isinstance(layer, nn.LSTM):
        return "only LSTMs have int8 kernels; quantize_weights is for the others"
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
            self._made[weight] = StoredWeight(codes, scale, zero_point, _BITS, columns)
        return self._made[weight]


class DynamicLSTM(WeightOnlyRecurrent):
    """An LSTM whose matrix products are in int8.

    Matrices have a scale for each row. What they are multiplied with is rounded to 256 levels,
    from its smallest to its largest value and zero among them: the input of a level as a whole,
    and the hidden state of a batch anew at each step. Other runtimes are handed the LSTM in float
    with rounded matrices; those that have int8 kernels for it know it by ``family`` and
    ``precision``.

    Args:
        layer: In float, without projections; it is called alike, with a batch and a state.
        stored: Its matrices by name.
    """

    family = "recurrent"
    precision = "int8"

    def __init__(self, layer: nn.LSTM, stored: Mapping[str, StoredWeight]) -> None:
        super().__init__(layer, stored)

    def forward(self, x: torch.Tensor, state: Pair) -> tuple[torch.Tensor, Pair]:
        hidden, cell = state
        x = x.transpose(0, 1) if self.settings["batch_first"] else x
        suffixes = ("", "_reverse") if self.settings["bidirectional"] else ("",)
        last: list[Pair] = []
        for level in range(self.settings["num_layers"]):
            outputs = []
            for suffix in suffixes:
                weights = self._weights(f"l{level}{suffix}", x)
                begin = hidden[len(last)], cell[len(last)]
                output, *end = direction(x, *begin, *weights, reverse=bool(suffix))
                outputs.append(output)
                last.append((end[0], end[1]))
            x = torch.cat(outputs, -1)
        x = x.transpose(0, 1) if self.settings["batch_first"] else x
        hiddens, cells = zip(*last, strict=True)
        return x, (torch.stack(hiddens), torch.stack(cells))

    def products(self, given: torch.Tensor, value: torch.Tensor) -> float:
        """Multiply-adds of a call."""
        sizes: list[int] = [getattr(self, f"{name}_packed").numel() for name in self.groups]
        return float(given.shape[:2].numel()) * sum(sizes)

    def _weights(self, part: str, like: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Both matrices and the sum of the biases of one level and direction."""
        bias = like.new_zeros(4 * self.settings["hidden_size"])
        if self.settings["bias"]:
            bias = self._weight(f"bias_ih_{part}") + self._weight(f"bias_hh_{part}")
        return self._weight(f"weight_ih_{part}"), self._weight(f"weight_hh_{part}"), bias


# One operator, since a loop over steps could not be traced where their number is symbolic.
@torch.library.custom_op("fxopt_quantize::lstm_direction", mutates_args=())
def direction(
    x: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    weight: torch.Tensor,
    recurrent: torch.Tensor,
    bias: torch.Tensor,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One level of an LSTM in one direction, steps first: all outputs, and the last state."""
    gates = F.linear(rounded_whole(x), weight, bias)
    outputs = x.new_empty(*x.shape[:2], hidden.shape[-1])
    order = range(len(x) - 1, -1, -1) if reverse else range(len(x))
    for step in order:
        both = gates[step] + F.linear(rounded_whole(hidden), recurrent)
        enter, forget, new, leave = both.chunk(4, -1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        outputs[step] = hidden
    return outputs, hidden.clone(), cell.clone()  # an operator may not return what it was given


@direction.register_fake
def _(
    x: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    weight: torch.Tensor,
    recurrent: torch.Tensor,
    bias: torch.Tensor,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    outputs = x.new_empty(*x.shape[:2], hidden.shape[-1])
    return outputs, torch.empty_like(hidden), torch.empty_like(cell)
