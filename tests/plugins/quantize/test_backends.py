"""Each int8 layer of random models on each backend: within one quantization step of the program."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from fxopt.cost import find_target
from fxopt.errors import BackendError
from fxopt.frontend import capture_program
from fxopt.passes import Calibration, Context
from fxopt.registry import default_registry
from fxopt.testing.reference import randomize
from fxopt.testing.strategies import models
from fxopt_fold_bn import FoldBN
from fxopt_quantize import FakeQuantize, FakeQuantizePerChannel, Quantize
from fxopt_quantize.modules import QuantConvTranspose, QuantLayer
from tests.building import Builder
from tests.random_models import on_random_models

CPU = find_target("cpu")
ROUNDINGS = (FakeQuantize, FakeQuantizePerChannel)


def usable(name):
    """The backend of that name, or a reason to skip the test."""
    backends, excluded = default_registry().available_backends(CPU, [name])
    if not backends:
        pytest.skip(str(excluded))
    return backends[0]


def values_in(program, x):
    """What each node of a program yields."""
    walk = fx.Interpreter(program.module, garbage_collect_values=False)
    with torch.no_grad():
        walk.run(x)
    return walk.env


def units(program, x):
    """Of each int8 layer its input, and what rounds that, the layer, and what rounds its result."""
    values = values_in(program, x)
    for node in program.nodes:
        layer = program.leaf(node) if node.op == "call_module" else None
        if isinstance(layer, QuantLayer):
            entry, after = rounding_before(program, node), rounding_after(program, node)
            yield values[node.args[0]], entry, layer, after


def rounding_before(program, node):
    while not isinstance(leaf := leaf_of(program, node), ROUNDINGS):
        node = node.all_input_nodes[0]
    return leaf


def rounding_after(program, node):
    leaves = [leaf_of(program, user) for user in node.users]
    return next((leaf for leaf in leaves if isinstance(leaf, FakeQuantize)), None)


def leaf_of(program, node):
    return program.leaf(node) if node.op == "call_module" else None


def units_program(units):
    """Each unit with an input and a result of its own."""
    modules, results = {}, []
    for index, (_, *leaves) in enumerate(units):
        names = (f"{name}_{index}" for name in ("entry", "layer", "after"))
        modules |= {
            name: leaf for name, leaf in zip(names, leaves, strict=True) if leaf is not None
        }
    b = Builder(**modules)
    for index, (x, *_, after) in enumerate(units):
        result = b.call(f"layer_{index}", b.call(f"entry_{index}", b.input(f"x_{index}", *x.shape)))
        results.append(result if after is None else b.call(f"after_{index}", result))
    return b.program(*results)


def quantized(model, x, **fields):
    program = capture_program(randomize(model).eval(), (x,), {}).clone()
    context = Context(CPU, calibration=Calibration([(x,)], program.signature))
    FoldBN().run(program, context)
    item = Quantize(**fields)
    if item.inapplicable(program, context):
        return None
    item.run(program, context)
    return program


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "onednn"])
@on_random_models(8)
@given(
    built=models(max_blocks=2),
    seed=st.integers(0, 2**16),
    activations=st.sampled_from(("auto", "symmetric", "asymmetric")),
    depthwise=st.sampled_from(("tensor", "channel")),
    bits=st.sampled_from(("auto", 4)),
    weights=st.sampled_from(("channel", "tensor")),
)
def test_each_int8_layer_is_within_one_step(
    name, built, seed, activations, depthwise, bits, weights
):
    backend = usable(name)
    model, channels, side = built
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = torch.randn(3, channels, side, side)
        program = quantized(
            model,
            x,
            activations=activations,
            weights=weights,
            depthwise=depthwise,
            weight_bits=bits,
        )
    if program is not None and (found := list(units(program, x))):
        check_units(backend, found)


class Layers(nn.Module):
    """A grouped convolution, a depthwise one and a linear layer."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.linear = nn.Linear(8, 10)

    def forward(self, x):
        x = self.depthwise(self.grouped(x).relu()).relu()
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "onednn"])
def test_one_scale_for_a_whole_weight_reaches_integer_kernels(name):
    backend = usable(name)
    torch.manual_seed(0)
    x = torch.randn(3, 4, 9, 9)
    program = quantized(Layers(), x, weights="tensor", least_saving=0.0)
    check_units(backend, list(units(program, x)))
    assert backend.lower(program, (x,), CPU).compile((x,)).precisions() == {"int8": 3}


def check_units(backend, units):
    """All at once, or each alone where there is one that the backend does not take."""
    program, inputs = units_program(units), tuple(unit[0] for unit in units)
    try:
        code = backend.lower(program, inputs, CPU).compile(inputs)
    except BackendError:  # torch has no integer kernel for some transposed convolutions
        assert backend.info.name == "onednn"
        transposed = [unit for unit in units if isinstance(unit[2], QuantConvTranspose)]
        assert transposed
        if len(units) > 1:
            for unit in units:
                check_units(backend, [unit])
        return
    with torch.no_grad():
        expected, actual = program(*inputs), code(*inputs)
    for unit, wanted, found in zip(units, expected, actual, strict=True):
        assert float((found - wanted).abs().max()) <= tolerance(unit, wanted), unit[2]


def tolerance(unit, wanted):
    """Where the result is rounded, one step; else half a step of sums of integers."""
    _, entry, layer, after = unit
    scale = torch.as_tensor(entry.scale).max() * layer.weight_scale.max()
    step = 0.5 * float(scale) if after is None else after.scale  # biases become integers, too
    return 1.001 * step + 2e-5 * float(wanted.abs().max()) + 1e-6
