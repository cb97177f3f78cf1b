"""Recurrent layers as sequences of OpenVINO, which runs each as one operation.

OpenVINO's front end has torch.export decompose what it does not know, and so a recurrent layer
into every single time step: three bidirectional layers over 64 steps become 384 products and take
a minute to compile, where their sequences take a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxopt.plugin import LeafModule, Program

if TYPE_CHECKING:
    import openvino
    from openvino.frontend import NodeContext

Recurrent = nn.LSTM | nn.GRU

# Which input tells how many steps there are.
_LENGTHS = {"LSTMSequence": 3, "GRUSequence": 2}

# Where OpenVINO's gates are in torch's order: forget, input, cell, output; update, reset, new.
_GATES: dict[type[nn.Module], tuple[int, ...]] = {nn.LSTM: (1, 0, 2, 3), nn.GRU: (1, 0, 2)}


def with_sequences(program: Program) -> Program:
    """The program with its recurrent layers in the form that :func:`extensions` translate.

    Args:
        program: It is not changed.
    """
    calls = [node.name for node in program.nodes if _is_batched(node)]
    names = dict.fromkeys(str(n.target) for n in program.nodes if n.name in calls)
    layers = {name: _layer(program.module.get_submodule(name)) for name in names}
    made = {name: RecurrentSequence(layer) for name, layer in layers.items() if layer is not None}
    if not made:
        return program
    twin = program.twin()
    with twin.edit() as edit:
        for node in [node for node in twin.nodes if node.name in calls]:
            if str(node.target) in made:
                edit.replace(node, made[str(node.target)], *node.args, **node.kwargs)
    return twin


def _is_batched(node: fx.Node) -> bool:
    """Whether a node calls a layer with a batch of sequences and a state, and gets both."""
    if node.op != "call_module" or not isinstance(node.meta["val"], tuple) or len(node.args) != 2:
        return False
    source = node.args[0]
    return isinstance(source, fx.Node) and source.meta["val"].dim() == 3


def _layer(leaf: nn.Module) -> Recurrent | None:
    """A recurrent layer without projections, if a leaf is one for other runtimes."""
    layer = leaf.exported() if isinstance(leaf, LeafModule) else leaf
    return layer if isinstance(layer, (nn.LSTM, nn.GRU)) and not layer.proj_size else None


class RecurrentSequence(LeafModule):
    """A recurrent layer, in eval mode, as one operator for each of its levels.

    Args:
        layer: What it computes; it is called alike.
    """

    def __init__(self, layer: Recurrent) -> None:
        super().__init__()
        self.batch_first = layer.batch_first
        self.has_cell = isinstance(layer, nn.LSTM)
        self.directions = 2 if layer.bidirectional else 1
        self.levels = layer.num_layers
        for level in range(layer.num_layers):
            for name, tensor in _weights(layer, level).items():
                self.register_buffer(f"{name}_{level}", tensor)

    def forward(self, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        hidden, cell = state if self.has_cell else (state, state)
        x = x if self.batch_first else x.transpose(0, 1)
        hiddens, cells = [], []
        for level in range(self.levels):
            part = slice(level * self.directions, (level + 1) * self.directions)
            states = (hidden[part].transpose(0, 1), cell[part].transpose(0, 1))
            found = self._sequence(level, x, *states)
            x = found[:, :, :-2].transpose(1, 2).flatten(2)
            hiddens.append(found[:, :, -2].transpose(0, 1))
            cells.append(found[:, :, -1].transpose(0, 1))
        output = x if self.batch_first else x.transpose(0, 1)
        if self.has_cell:
            return output, (torch.cat(hiddens), torch.cat(cells))
        return output, torch.cat(hiddens)

    def _sequence(
        self, level: int, x: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor
    ) -> torch.Tensor:
        weights = [getattr(self, f"{name}_{level}") for name in ("weight", "recurrent", "bias")]
        result: torch.Tensor = sequence(x, hidden, cell, *weights)
        return result


def _weights(layer: Recurrent, level: int) -> dict[str, torch.Tensor]:
    """The weights of both directions in OpenVINO's order."""
    suffixes = (f"_l{level}", f"_l{level}_reverse")[: 2 if layer.bidirectional else 1]
    found = [_of_direction(layer, suffix) for suffix in suffixes]
    names = ("weight", "recurrent", "bias")
    return {
        name: torch.stack(both) for name, both in zip(names, zip(*found, strict=True), strict=True)
    }


def _of_direction(layer: Recurrent, suffix: str) -> tuple[torch.Tensor, ...]:
    order = _GATES[type(layer)]
    weight, recurrent = (_ordered(getattr(layer, f"weight_{k}{suffix}"), order) for k in _KINDS)
    if not layer.bias:
        count = len(recurrent) + (layer.hidden_size if isinstance(layer, nn.GRU) else 0)
        return weight, recurrent, weight.new_zeros(count)
    first, second = (_ordered(getattr(layer, f"bias_{k}{suffix}"), order) for k in _KINDS)
    if isinstance(layer, nn.LSTM):
        return weight, recurrent, first + second
    size = 2 * layer.hidden_size  # that of the new state is multiplied with the reset gate
    return weight, recurrent, torch.cat([first[:size] + second[:size], first[size:], second[size:]])


_KINDS = ("ih", "hh")


def _ordered(tensor: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    gates = tensor.detach().chunk(len(order))
    return torch.cat([gates[index] for index in order])


@torch.library.custom_op("fxopt_openvino::sequence", mutates_args=())
def sequence(
    x: torch.Tensor,
    hidden: torch.Tensor,
    cell: torch.Tensor,
    weight: torch.Tensor,
    recurrent: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """One level of a recurrent layer, in all directions; only OpenVINO computes it.

    Args:
        x: Of shape (batch, steps, inputs).
        hidden: The first hidden states, of shape (batch, directions, hidden).
        cell: The first cell states; not used where there are three gates.
        weight: For the inputs, of shape (directions, gates * hidden, inputs).
        recurrent: For the hidden states.
        bias: Of shape (directions, gates * hidden), with one gate more where there are three.

    Returns:
        Outputs, last hidden and last cell states, one after the other in place of steps: of shape
        (batch, directions, steps + 2, hidden).
    """
    raise NotImplementedError("it stands for an operation of OpenVINO")


@sequence.register_fake
def _(x: torch.Tensor, hidden: torch.Tensor, *_others: torch.Tensor) -> torch.Tensor:
    batch, directions, size = hidden.shape
    return x.new_empty(batch, directions, x.shape[1] + 2, size)


def extensions() -> list[Any]:
    """What OpenVINO's front end needs to know to translate :func:`sequence`."""
    from openvino.frontend.pytorch import ConversionExtension

    return [ConversionExtension("fxopt_openvino.sequence.default", _translated)]


def _translated(context: NodeContext) -> list[openvino.Output]:
    from openvino import opset15 as ops

    x, hidden, cell, weight, recurrent, bias = (context.get_input(index) for index in range(6))
    shape = ops.shape_of(x)
    batch, steps = (ops.gather(shape, [index], 0) for index in range(2))
    lengths = ops.broadcast(steps, batch)
    directions, rows, size = (d.get_length() for d in recurrent.get_partial_shape())
    direction = "bidirectional" if directions == 2 else "forward"
    if rows == 4 * size:
        found = ops.lstm_sequence(
            x, hidden, cell, lengths, weight, recurrent, bias, size, direction
        ).outputs()
    else:
        found = ops.gru_sequence(
            x, hidden, lengths, weight, recurrent, bias, size, direction, linear_before_reset=True
        ).outputs()
    outputs, last, *cells = found
    states = [ops.unsqueeze(each, 2) for each in (last, *(cells or [last]))]
    joined: list[openvino.Output] = ops.concat([outputs, *states], 2).outputs()
    return joined


def fix_lengths(model: openvino.Model) -> None:
    """Makes constants of how many steps sequences have.

    Where the runtime is not certain that these are all, it loops over steps.

    Args:
        model: Of fixed shapes; it is changed.
    """
    import numpy as np
    from openvino import op

    for operation in model.get_ops():
        if operation.get_type_name() in _LENGTHS:
            batch, steps, _ = operation.input_value(0).get_shape()
            lengths = op.Constant(np.full(batch, steps, dtype=np.int64))
            taken = operation.input(_LENGTHS[operation.get_type_name()])
            taken.replace_source_output(lengths.output(0))
