"""Quantized programs of random models, node by node beside integers by NumPy."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from fxopt.testing.strategies import generated_cases
from fxopt_fold_bn import FoldBN
from fxopt_quantize import FakeQuantize, FakeQuantizePerChannel, QuantConv, Quantize, QuantLinear
from fxopt_quantize.modules import QuantLayer
from fxopt_quantize.rules import operands
from tests.random_models import on_random_models

_PAD = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def rounded(x, scale, zero_point):
    """The integers of a value, less the zero point."""
    return np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.int64) - zero_point


def convolved(x, layer):
    """Sums of products of integers, from windows of the input."""
    weight = layer.weight_values.numpy().astype(np.int64)
    dims, groups = weight.ndim - 2, layer.settings["groups"]
    pads = list(zip(layer.pads[::2], layer.pads[1::2], strict=True))[::-1]
    x = np.pad(x, [(0, 0), (0, 0), *pads], mode=_PAD[layer.padding_mode])
    dilation = layer.settings["dilation"]
    reach = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, tuple(range(2, 2 + dims)))
    steps = [slice(None, None, s) for s in layer.settings["stride"]]
    inside = [slice(None, None, d) for d in dilation]
    windows = windows[(slice(None), slice(None), *steps, *inside)]
    parts = zip(np.split(windows, groups, 1), np.split(weight, groups, 0), strict=True)
    axes = ([1, *range(2 + dims, 2 + 2 * dims)], list(range(1, 2 + dims)))
    return np.concatenate([np.moveaxis(np.tensordot(w, k, axes), -1, 1) for w, k in parts], 1)


class Beside(fx.Interpreter):
    """Runs a program, and each rounding and each int8 layer by NumPy as well."""

    def __init__(self, program):
        super().__init__(program.module)
        self.program = program
        self.layers = 0

    def run_node(self, node):
        value = super().run_node(node)
        leaf = self.program.leaf(node) if node.op == "call_module" else None
        if isinstance(leaf, (FakeQuantize, FakeQuantizePerChannel)):
            self.check_rounding(leaf, self.env[node.args[0]].numpy(), value)
        elif isinstance(leaf, (QuantConv, QuantLinear)):
            self.check_layer(node, leaf, value)
            self.layers += 1
        return value

    def check_rounding(self, leaf, x, value):
        scale, point = grid(leaf, x.ndim)
        expected = rounded(x, scale, point) * scale
        apart = np.abs(expected - value.numpy())
        # torch has scales in float32: what lies half-way may become either neighbour
        halves = np.abs(x / scale - np.floor(x / scale) - 0.5) < 1e-4
        assert (apart[~halves] <= 1e-5 * np.abs(expected[~halves]) + 1e-12).all()
        assert (apart <= 1.001 * np.broadcast_to(scale, x.shape)).all()

    def check_layer(self, node, layer, value):
        x = self.env[node.args[0]].numpy()
        scale, _ = grid(self.rounding_of(node), x.ndim)
        integers = np.rint(x / scale)
        np.testing.assert_allclose(x / scale, integers, atol=1e-3)  # it lies on the grid
        linear = isinstance(layer, QuantLinear)
        whole = integers.astype(np.int64)
        weight = layer.weight_values.numpy().astype(np.int64)
        sums = whole @ weight.T if linear else convolved(whole, layer)
        ones = (1,) * (0 if linear else x.ndim - 2)
        scales = layer.weight_scale.numpy().reshape(-1, *ones)
        bias = 0 if layer.bias is None else layer.bias.detach().numpy().reshape(-1, *ones)
        expected = sums * scales * outgoing(scale, layer) + bias
        tolerance = 1e-6 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(value.detach().numpy(), expected, atol=tolerance)

    def rounding_of(self, node):
        """What rounds the input of a layer, be it before operations that only pass values on."""
        source = node.all_input_nodes[0]
        while not is_rounding(self.program, source):
            source = operands(source)[0]
        return self.program.leaf(source)


def is_rounding(program, node):
    kinds = (FakeQuantize, FakeQuantizePerChannel)
    return node.op == "call_module" and isinstance(program.leaf(node), kinds)


def grid(leaf, dims):
    if isinstance(leaf, FakeQuantize):
        return leaf.scale, leaf.zero_point
    shape = (1, -1) + (1,) * (dims - 2)
    return leaf.scale.numpy().reshape(shape), int(leaf.zero_point[0])


def outgoing(scale, layer):
    """The scale of a layer's input by output channel: of depthwise layers they correspond."""
    if np.ndim(scale) == 0:
        return scale
    each = len(layer.weight_values) // scale.size
    return np.repeat(scale.reshape(-1), each).reshape(-1, *(1,) * (scale.ndim - 2))


@on_random_models(30)
@given(
    generated_cases(),
    st.sampled_from(("auto", "symmetric", "asymmetric")),
    st.sampled_from(("tensor", "channel")),
    st.sampled_from(("minmax", "histogram", "percentile")),
    st.sampled_from((8, 4)),
    st.sampled_from(("channel", "tensor")),
)
def test_programs_are_what_integers_give(case, activations, depthwise, calibrator, bits, weights):
    program = case.program.clone()
    FoldBN().run(program, case.context())
    item = Quantize(
        activations=activations,
        weights=weights,
        depthwise=depthwise,
        calibrator=calibrator,
        weight_bits=bits,
    )
    if item.inapplicable(program, case.context()):
        return
    item.run(program, case.context())
    with torch.no_grad():
        for flat in case.inputs:
            walk = Beside(program)
            walk.run(*flat)
            assert walk.layers == len(list(program.find(QuantConv, QuantLinear)))
    if weights == "tensor":
        found = [program.leaf(node) for node in program.find(QuantLayer)]
        assert all(layer.weight_scale.numel() == 1 for layer in found)
