"""Layers with weights: linear ones, convolutions, embeddings."""

from __future__ import annotations

from torch import nn

from fxopt_prune.channels.atoms import Labels, fixed
from fxopt_prune.channels.blocks import couple_blocks, couple_columns
from fxopt_prune.channels.rules.registry import rule
from fxopt_prune.channels.trace import Call, Dims, UnclearError


@rule(nn.Linear)
def linear(call: Call) -> Dims:
    """What comes in meets the weight's columns; its rows go out."""
    x = call.first()
    outputs, inputs = call.trace.weight(call.leaf.weight)
    call.layer(inputs, outputs)
    call.couple(x[-1], inputs)
    _bias(call, outputs)
    return (*x[:-1], outputs)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(call: Call) -> Dims:
    """A weight has all outputs, and the inputs of one group."""
    outputs, inputs = call.trace.weight(call.leaf.weight)[:2]
    call.layer(inputs, outputs)
    come = _channels(call)
    if call.leaf.groups == 1:
        call.couple(come, inputs)
    elif not _whole_groups(call, come, outputs, inputs):
        call.couple(come.reshape(call.leaf.groups, -1), inputs[None])
    return _convolved(call, outputs)


@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed(call: Call) -> Dims:
    """A weight has all inputs, and the outputs of one group."""
    inputs, outputs = call.trace.weight(call.leaf.weight)[:2]
    call.couple(_channels(call), inputs)
    if call.leaf.groups == 1:
        call.layer(inputs, outputs)
        return _convolved(call, outputs)
    every = _all_outputs(call)
    if not _whole_groups(call, inputs, every, outputs):
        call.layer(inputs, outputs)
        call.couple(every.reshape(call.leaf.groups, -1), outputs[None])
    return _convolved(call, every)


def _channels(call: Call) -> Labels:
    """The labels of the channels that come in."""
    x = call.first()
    if len(x) <= len(call.leaf.kernel_size):
        raise UnclearError("the input has too few dimensions")
    return x[_channel_dim(call)]


def _channel_dim(call: Call) -> int:
    return len(call.first()) - len(call.leaf.kernel_size) - 1


def _whole_groups(call: Call, come: Labels, go: Labels, part: Labels) -> bool:
    """Lets groups go whole, or else lets all lose the same positions, and tells which.

    What leaves more to choose from is done: of 32 groups of 4 channels there are 32 and 4.

    Args:
        call: The call of a grouped convolution.
        come: Labels of all inputs.
        go: Labels of all outputs.
        part: Labels of the channels of one group, as the weight has them.
    """
    groups = call.leaf.groups
    if groups >= len(come) // groups:
        call.fix(part, "groups go whole")
        couple_blocks(call, groups, come, go)
        return True
    couple_columns(call, groups, come, go)
    return False


def _all_outputs(call: Call) -> Labels:
    """Labels of outputs that the weight does not have: the bias does, where there is one."""
    bias = call.leaf.bias
    return call.trace.atoms.fresh(call.leaf.out_channels) if bias is None else _of_bias(call)


def _convolved(call: Call, channels: Labels) -> Dims:
    """The labels of the result; neighbours in space stay."""
    x, channel = call.first(), _channel_dim(call)
    for labels in (*call.trace.weight(call.leaf.weight)[2:], *x[channel + 1 :]):
        call.fix(labels, "neighbours in space")
    _bias(call, channels)
    space = tuple(fixed(size) for size in call.sizes[channel + 1 :])
    return (*x[:channel], channels, *space)


def _bias(call: Call, outputs: Labels) -> None:
    if call.leaf.bias is not None:
        call.couple(_of_bias(call), outputs)


def _of_bias(call: Call) -> Labels:
    return call.trace.weight(call.leaf.bias)[0]


@rule(nn.Embedding)
def embedding(call: Call) -> Dims:
    """Rows are looked up by number, so only columns can go."""
    rows, columns = call.trace.weight(call.leaf.weight)
    call.fix(rows, "rows of a table")
    call.layer(rows, columns)
    return (*call.first(), columns)
