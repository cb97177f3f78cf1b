"""Linear layers in float32 through Inductor: by the library that is faster at their size."""

import math

import pytest
import torch
from torch import nn

from fxopt.backends.scratch import use_scratch
from fxopt.cost import find_target
from fxopt.frontend import capture_program
from fxopt_inductor import Inductor, linear_kernels
from fxopt_inductor.flat import flat_module
from fxopt_inductor.kernels import HEAVY_KINDS
from fxopt_inductor.linears import (
    Size,
    as_convolutions,
    fold_rows,
    layers_by_size,
    lives_by_linears,
)
from tests.building import image, small_cnn
from tests.plugins.quantize.support import relative

CPU = find_target("cpu")
needs_inductor = pytest.mark.skipif(Inductor().unavailable() is not None, reason="no toolchain")
needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="torch without MKL")


class Mixer(nn.Module):
    """Linear layers with and without biases and activations, and one whose weight is computed."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(24, 48)
        self.second = nn.Linear(48, 24, bias=False)

    def forward(self, x):
        x = x + self.second(nn.functional.gelu(self.first(x)))
        return nn.functional.linear(x, x[0])


@needs_inductor
@needs_mkl
@pytest.mark.parametrize(
    ("ratio", "kind", "convolutions"),
    [(0.9, "Convolution", 2), (1.1, "MatMul", 0)],
    ids=["convolution", "product"],
)
def test_linear_layers_run_as_what_is_faster(monkeypatch, ratio, kind, convolutions):
    monkeypatch.setattr(linear_kernels, "convolution_over_product", lambda size, threads: ratio)
    torch.manual_seed(0)
    x = torch.randn(2, 7, 24)
    program = capture_program(Mixer().eval(), (x,), {})
    code = Inductor().lower(program, (x,), CPU).compile((x,))
    with torch.no_grad():
        assert relative(code(x)[0], program(x)[0]) < 1e-6
    layers = {k.name: (k.kind, k.precision) for k in code.kernels() if k.kind in HEAVY_KINDS}
    assert layers["first"] == layers["second"] == (kind, "f32")
    found = code.code.count("_convolution_pointwise")
    assert found >= convolutions
    assert bool(found) is bool(convolutions)


@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 3, 4)])
def test_the_rewritten_module_gives_the_same(leading):
    x = torch.randn(*leading, 24)
    layer = capture_program(nn.Linear(24, 9).eval(), (x,), {})
    module = flat_module(layer, (x,))
    (((rows, wide, out), nodes),) = layers_by_size(module).items()
    assert (rows, wide, out) == (math.prod(leading), 24, 9)
    as_convolutions(module, nodes)
    assert [n.target for n in module.graph.nodes if n.target is torch.ops.aten.linear.default] == []
    with torch.no_grad():
        assert relative(module(x)[0], layer(x)[0]) < 1e-6
    assert lives_by_linears(layer)


def test_a_program_of_convolutions_does_not_live_by_its_linear_layer():
    assert not lives_by_linears(small_cnn())


def test_float_programs_are_built_one_way_only():
    x = torch.randn(2, 7, 24)
    program = capture_program(Mixer().eval(), (x,), {})
    assert Inductor().tunings(program, (x,), CPU, milliseconds=9.0) == ()
    assert Inductor(precision="bf16").tunings(program, (x,), CPU, milliseconds=9.0) == ()
    assert Inductor().tunings(small_cnn(), (image(),), CPU, milliseconds=9.0) == ()


class Widths(nn.Module):
    """Layers of three sizes, one of them twice, one that is too small to matter."""

    def __init__(self):
        super().__init__()
        self.wide, self.narrow = nn.Linear(64, 256), nn.Linear(256, 64)
        self.again, self.tiny = nn.Linear(64, 256), nn.Linear(256, 1)

    def forward(self, x):
        return self.tiny(self.again(self.narrow(self.wide(x))))


@needs_mkl
def test_each_size_is_measured_once_for_all_builds(monkeypatch, tmp_path):
    asked = []

    def ratio(size, threads):
        asked.append(size)
        return 0.9 if size.out > size.wide else 0.98

    monkeypatch.setattr(linear_kernels, "convolution_over_product", ratio)
    x = torch.randn(3, 64)
    module = flat_module(capture_program(Widths().eval(), (x,), {}), (x,))
    with use_scratch(tmp_path):
        chosen = [linear_kernels.faster_as_convolutions(module) for _ in range(2)]
    assert chosen[0] == chosen[1]
    weights = [str(node.args[1].target) for node in chosen[0]]
    assert [name.split(".")[-2] for name in weights] == ["wide", "again"]
    assert asked == [(3, 64, 256), (3, 256, 64)]


@needs_mkl
@pytest.mark.parametrize(
    ("ratios", "found"),
    [
        ([0.76] * 7, 0.76),
        ([0.7, 0.7, 0.7, 0.7, 0.7, 1.4, 2.0], 1.4),  # others were at work: nothing is shown
        ([0.8, 0.8, 0.8, 0.8, 0.8, 0.9, 3.0], 0.9),  # one pair may be out by chance
    ],
)
def test_all_pairs_but_one_have_to_show_the_difference(monkeypatch, ratios, found):
    taken = iter([1.0, 1.0] + [seconds for ratio in ratios for seconds in (ratio, 1.0)])
    monkeypatch.setattr(linear_kernels, "_seconds", lambda call: next(taken))
    assert linear_kernels.convolution_over_product.__wrapped__(Size(2, 3, 4), 1) == found
    assert not list(taken)


@needs_mkl
def test_both_calls_that_are_timed_are_the_layer():
    x, weight = torch.randn(5, 24), torch.randn(9, 24)
    product, convolution = linear_kernels.calls(x, weight)
    expected = nn.functional.linear(x, weight)
    assert relative(product(), expected) < 1e-6
    assert relative(convolution().permute(0, 2, 3, 1).reshape(5, 9), expected) < 1e-6
    size = Size(5, 24, 9)
    assert 0 < linear_kernels.convolution_over_product(size, torch.get_num_threads()) < math.inf


class Crosswise(nn.Module):
    """A linear layer of what does not lie in memory in order; its weights ask for no gradient."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(24, 48)
        self.requires_grad_(False)

    def forward(self, x):
        return torch.relu(self.layer(torch.tanh(x).transpose(0, 1)))


@needs_inductor
@pytest.mark.parametrize(("precision", "close"), [("f32", 1e-6), ("bf16", 1e-2)])
def test_no_layer_becomes_a_product_of_batches(precision, close):
    torch.manual_seed(0)
    x = torch.randn(6, 7, 24)
    program = capture_program(Crosswise().eval(), (x,), {})
    code = Inductor(precision=precision).lower(program, (x,), CPU).compile((x,))
    assert relative(code(x)[0], program(x)[0]) < close
    assert "bmm" not in code.code
    heavy = {k.name: k.precision for k in code.kernels() if k.kind in HEAVY_KINDS}
    assert heavy == {"layer": precision}


def test_rows_are_folded_where_they_do_not_lie_in_order():
    x = torch.randn(6, 7, 24)
    crosswise, straight = (
        flat_module(capture_program(net.eval(), (x,), {}), (x,))
        for net in (Crosswise(), nn.Linear(24, 9))
    )
    expected = crosswise(x)[0]
    for module in (crosswise, straight):
        fold_rows(module)
    sizes = [
        [len(node.args[0].meta["val"].shape) for node in nodes]
        for module in (crosswise, straight)
        for nodes in layers_by_size(module).values()
    ]
    assert sizes == [[2], [3]]
    assert torch.equal(crosswise(x)[0], expected)
