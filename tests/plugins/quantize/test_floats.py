"""Floats of few bits: numbers beside all that a format has, layers beside float, every backend."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from fxopt.backends.fallback import find_fallbacks
from fxopt.cost import find_target
from fxopt.errors import BackendError, CalibrationError, PassError
from fxopt.frontend import capture_program
from fxopt.ir.saving import load_program, save_program
from fxopt.passes import Calibration, Context
from fxopt.pipeline import PassManager, plan
from fxopt.registry import default_registry
from fxopt.testing import check_pass
from fxopt.testing.strategies import generated_cases
from fxopt_eager import Eager
from fxopt_fold_bn import FoldBN
from fxopt_inductor import Inductor
from fxopt_onnxruntime import ONNXRuntime
from fxopt_openvino import OpenVINO
from fxopt_quantize import QuantizeFloats, RoundFloatRows, RoundFloats
from fxopt_quantize.formats import FLOATS, signed, unsigned
from fxopt_quantize.modules import QuantLayer
from tests.plugins.quantize.support import relative
from tests.random_models import on_random_models

CPU = find_target("cpu")
NAMES = st.sampled_from(sorted(FLOATS))


class Net(nn.Module):
    """A convolution, and two linear layers that take the same value."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 4, bias=False)

    def forward(self, x):
        y = torch.relu(self.conv(x)).mean((2, 3))
        return self.head(self.left(y) * self.right(y))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


def floats(model, *inputs, calibrate=True, **fields):
    program = capture_program(model.eval(), inputs, {}).clone()
    calibration = Calibration([inputs], program.signature) if calibrate else None
    item = QuantizeFloats(**fields)
    result = item.run(program, Context(CPU, [list(inputs)], calibration=calibration))
    program.verify()
    return program, result


def all_numbers(number):
    """Every finite number of a format, from its bits."""
    kinds = {8: torch.uint8, 16: torch.int16}
    bits = torch.arange(1 << number.bits, dtype=torch.int64).to(kinds[number.bits])
    found = bits.view(number.storage).double()
    return found[torch.isfinite(found)].unique().numpy()


@given(NAMES, st.floats(-1e6, 1e6), st.integers(-20, 5))
def test_values_become_the_nearest_number(name, value, power):
    number = FLOATS[name]
    value = value * 10.0**power
    grid = all_numbers(number)
    assert number.highest == grid[-1]
    assert number.lowest == grid[0]
    mine = float(number.nearest(torch.tensor(value, dtype=torch.float64)))
    if not number.scaled and not np.isfinite(mine):
        assert abs(value) > grid[-1]  # as in a kernel without a scale
        return
    assert mine in grid
    # on the way from float64 torch may round to float32 first
    assert abs(mine - value) <= np.abs(grid - value).min() * (1 + 1e-5)


@given(st.integers(2, 8), st.floats(-300, 300))
def test_integers_are_rounded_and_cut_off(bits, value):
    half = 2 ** (bits - 1) - 1
    x = torch.tensor(value, dtype=torch.float64)
    assert float(signed(bits).nearest(x)) == min(max(round(value), -half), half)
    assert float(unsigned(bits).nearest(x)) == min(max(round(value), 0), 2**bits - 1)


@pytest.mark.parametrize("activations", ["off", "static", "dynamic"])
@on_random_models(12)
@given(generated_cases(), NAMES)
def test_random_models_are_those_with_rounded_weights_and_inputs(activations, case, name):
    program = case.program.clone()
    FoldBN().run(program, case.context())
    rounded = program.clone()
    item = QuantizeFloats(format=name, activations=activations)
    if item.inapplicable(program, case.context()):
        return
    item.run(program, case.context())
    program.verify()
    number, layers = FLOATS[name], {}
    pairs = zip(heavy(rounded), heavy(program), strict=True)
    for node, twin in [pair for pair in pairs if isinstance(program.leaf(pair[1]), QuantLayer)]:
        quantized, layer = program.leaf(twin), copy.deepcopy(rounded.leaf(node))
        assert_rounded(layer, quantized, number)
        with torch.no_grad():
            layer.weight.copy_(quantized.weight)
        rounding = rounding_of(program, twin, number) if activations != "off" else nn.Identity()
        layers[node] = layer, rounding
    for flat, mine in zip(case.inputs, case.outputs(program), strict=True):
        with torch.no_grad():
            expected = Rounded(rounded.module, layers).run(*flat)
        torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


class Rounded(fx.Interpreter):
    """Puts other layers, and what rounds their input, in place of those at some nodes."""

    def __init__(self, module, layers):
        super().__init__(module)
        self.layers = layers

    def run_node(self, n):
        if n not in self.layers:
            return super().run_node(n)
        layer, rounding = self.layers[n]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return layer(rounding(args[0]), *args[1:], **kwargs)


def heavy(program):
    return list(program.find(nn.Linear, nn.modules.conv._ConvNd, QuantLayer))


def assert_rounded(layer, quantized, number):
    """Weights are the nearest numbers of the format, on the scale of their channel."""
    axis = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
    weight = layer.weight.detach().transpose(0, axis).flatten(1).numpy()
    largest = np.abs(weight).max(1, keepdims=True)
    scale = largest / number.highest if number.scaled else np.ones_like(largest)
    scale[scale == 0] = 1
    grid = all_numbers(number)
    places = np.searchsorted(grid, weight / scale).clip(1, len(grid) - 1)
    nearest = np.minimum(*(np.abs(grid[places - i] * scale - weight) for i in (0, 1)))
    mine = quantized.weight.detach().transpose(0, axis).flatten(1).numpy()
    assert (np.abs(mine - weight) <= nearest * (1 + 1e-6) + 1e-12).all()


def rounding_of(program, node, number):
    """What the input of a layer should be rounded by, written out."""
    rounding = program.leaf(node.args[0])
    assert isinstance(rounding, RoundFloats | RoundFloatRows)

    def rounded(x):
        if not number.scaled:
            return x.to(number.storage).to(x.dtype)
        scale = x.abs().amax(-1, keepdim=True) * (1 / number.highest)
        if isinstance(rounding, RoundFloats):
            scale = x.new_tensor(rounding.scale)
        safe = torch.where(scale > 0, scale, 1.0)
        units = (x / safe).clamp(-number.highest, number.highest)
        return units.to(number.storage).to(x.dtype) * safe

    return rounded


def test_the_largest_value_seen_becomes_the_largest_number(x):
    program, result = floats(Net(), x)
    assert result.summary == "4 layers in fp8_e4m3, static activations"
    rounding = next(iter(program.find(RoundFloats)))
    assert rounding.args[0].op == "placeholder"
    assert program.leaf(rounding).scale == pytest.approx(float(x.abs().max()) / 448)
    assert len(list(program.find(RoundFloats))) == 3  # what two layers take is rounded once


@pytest.mark.parametrize(
    ("name", "limit"), [("fp8_e4m3", 0.06), ("fp8_e5m2", 0.12), ("fp16", 1e-3), ("bf16", 0.01)]
)
@pytest.mark.parametrize("activations", ["off", "static", "dynamic"])
def test_finer_formats_err_less(x, name, limit, activations):
    model = Net()
    program, _ = floats(model, x, format=name, activations=activations)
    with torch.no_grad():
        error = relative(program(x)[0], model(x))
    assert limit / 30 < error < limit


BACKENDS = [Eager(), Inductor(), OpenVINO(), ONNXRuntime()]


@pytest.mark.parametrize("activations", ["off", "static"])
@pytest.mark.parametrize("backend", BACKENDS, ids=[backend.label for backend in BACKENDS])
def test_every_backend_is_right_and_tells_what_it_computes_in(x, backend, activations):
    if (reason := backend.unavailable()) is not None:
        pytest.skip(reason)
    names = sorted(FLOATS)
    try:
        program, code = lowered(names, x, activations, backend)
    except BackendError as error:  # OpenVINO converts to fp8 on some processors alone
        if not isinstance(backend, OpenVINO) or activations == "off" or "f8e" not in str(error):
            raise
        names = [name for name in names if not name.startswith("fp8")]
        program, code = lowered(names, x, activations, backend)
    with torch.no_grad():
        pairs = zip(names, code(x), program(x), strict=True)
    for name, found, expected in pairs:
        # Inductor may leave out two casts in a row, and is closer to the original then
        assert relative(found, expected) < (0.01 if name == "bf16" else 1e-3)
    fallbacks = find_fallbacks(program, code.kernels())
    told = activations != "off" and not isinstance(backend, Eager)  # which has no kernels to tell
    assert len(fallbacks) == (4 * len(names) if told else 0)  # float32 alone computes here


class Nets(nn.Module):
    """One by each name: to lower several at once takes hardly longer than one."""

    def __init__(self, names):
        super().__init__()
        self.nets = nn.ModuleDict({name: Net() for name in names})

    def forward(self, x):
        return tuple(net(x) for net in self.nets.values())


def lowered(names, x, activations, backend):
    """A program with a net in each format, and its code."""
    program = capture_program(Nets(names).eval(), (x,), {}).clone()
    context = Context(CPU, [[x]], calibration=Calibration([(x,)], program.signature))
    for index, name in enumerate(names):
        others = tuple(f"nets.{other}.*" for other in names[index + 1 :])
        QuantizeFloats(format=name, activations=activations, skip=others).run(program, context)
    program.verify()
    return program, backend.lower(program, (x,), CPU).compile((x,))


def test_weights_take_fewer_bytes_and_are_saved_so(x, tmp_path):
    program, _ = floats(Net(), x, activations="off")
    plain = capture_program(Net().eval(), (x,), {})
    assert program.weight_bytes() < 0.45 * plain.weight_bytes()  # of which many are scales here
    save_program(program, tmp_path / "program")
    loaded = load_program(tmp_path / "program", packages={"fxopt_quantize"})
    assert torch.equal(loaded(x)[0], program(x)[0])
    assert loaded.weight_bytes() == program.weight_bytes()


def test_what_cannot_be_done_is_told(x):
    with pytest.raises(CalibrationError, match=r"static.*needs calibration data"):
        floats(Net(), x, calibrate=False)
    floats(Net(), x, calibrate=False, activations="dynamic")
    with pytest.raises(PassError, match=r"'haed'.*no such layer"):
        floats(Net(), x, skip=("haed",))
    with pytest.raises(ValueError, match="samples"):
        QuantizeFloats(samples=0)
    model = Net()
    model.head.weight.data[0, 0] = 1e5
    program, result = floats(model, x, format="fp16")
    assert "reach to 1e+05, which fp16 does not hold" in result.refused[0]
    assert [str(node.target) for node in program.find(nn.Linear)] == ["head"]
    _, result = floats(Net(), x, activations="dynamic", skip=("left",))
    assert "only linear layers" in result.refused[0]
    assert "named in skip" in result.refused[1]


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("calibrate", [True, False])
def test_layers_stay_that_take_more_than_fp16_holds(x, activations, calibrate):
    class Loud(Net):
        def forward(self, x):
            return super().forward(x * 1e6)

    fields = {"activations": activations, "calibrate": calibrate}
    _, result = floats(Loud(), x, format="fp16", **fields)
    assert result.refused[0].startswith("conv: it takes values up to ")
    assert result.refused[0].endswith("e+06, which fp16 does not hold")
    _, result = floats(Loud(), x, format="bf16", **fields)
    assert not result.refused


def test_fp16_overflows_as_a_kernel_does(x):
    program, _ = floats(Net(), x, format="fp16")
    with torch.no_grad():
        assert not torch.isfinite(program(x * 1e6)[0]).any()


@pytest.mark.parametrize("name", sorted(FLOATS))
def test_grouped_transposed_convolutions_compute_in_float(name):
    layer, x = nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)
    program, result = floats(layer, x, format=name)
    assert not result.refused
    assert relative(program(x)[0], layer(x)) < 0.1


def test_a_drift_is_kept_by_leaving_few_layers_in_float():
    model, x = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4))), torch.randn(16, 32)
    program = capture_program(model.eval(), (x,), {})
    context = Context(CPU, [[x]], calibration=Calibration([x], program.signature))
    facts = default_registry().facts

    def managed(**limits):
        order = plan([QuantizeFloats()], facts, set(facts))
        return PassManager(order, facts, context, **limits).run(program).records[0]

    free = managed()
    record = managed(max_drift=0.8 * free.drift)
    assert record.status == "applied"
    assert record.drift <= 0.8 * free.drift
    assert 1 <= len(record.refused) <= 3


@pytest.mark.parametrize("activations", ["off", "static", "dynamic"])
def test_it_conforms(activations):
    for check in check_pass(QuantizeFloats(activations=activations)):
        check()
