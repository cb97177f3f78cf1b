"""Int8 programs on CPUs for which Inductor writes slow code between or within int8 layers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fxopt.cost import find_target
from fxopt_inductor import Inductor
from fxopt_inductor.flat import flat_module
from fxopt_inductor.lowp import Form, heavy_kernels, rewrite
from fxopt_quantize.modules import FakeQuantize
from tests.building import Builder, aten
from tests.plugins.int8 import qconv

CPU = find_target("cpu")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def block():
    """What a residual block adds and pools: both take what layers take, too."""
    b = Builder(
        into=FakeQuantize(0.02, 128),
        first=qconv(nn.Conv2d(4, 8, 1)),
        middle=FakeQuantize(0.01, 128),
        second=qconv(nn.Conv2d(8, 8, 3, padding=1)),
        other=FakeQuantize(0.01, 128),
        out=FakeQuantize(0.02, 0),
        last=qconv(nn.Conv2d(8, 4, 1)),
    )
    shortcut = b.call("middle", b.call("first", b.call("into", b.input("x", 2, 4, 6, 6))))
    branch = b.call("other", b.call("second", shortcut))
    rounded = b.call("out", b.call(aten.relu.default, b.call(aten.add.Tensor, shortcut, branch)))
    pooled = b.call(aten.mean.dim, rounded, [2, 3], True)
    return b.program(b.call("last", rounded), pooled)


def casts_from_bytes(module):
    casts = module.graph.find_nodes(op="call_function", target=aten._to_copy.default)
    return [node for node in casts if node.kwargs["dtype"] is torch.float32]


def test_where_reading_bytes_is_slow_only_layers_are_given_them():
    program, x = block(), torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        expected = program(x)
    for reads_bytes in (True, False):
        form = Form(compiled=True, wide=reads_bytes)
        module = rewrite(flat_module(program, (x,)), form)
        assert bool(casts_from_bytes(module)) == reads_bytes
        kernels = heavy_kernels(module).values()
        assert [kernel.precision for kernel in kernels] == ["int8"] * 3
        for output, wanted in zip(module(x), expected, strict=True):
            assert float(((output - wanted).abs() < 1e-5).float().mean()) > 0.95


@pytest.mark.parametrize(
    ("features", "fast"),
    [(("avx2",), False), (("avx2", "avx_vnni"), False), (("avx2", "avx512f"), True), ((), True)],
)
def test_inductor_reads_bytes_slowly_on_avx2(features, fast, monkeypatch):
    forms = []

    def noted(module, form):
        forms.append(form)
        return rewrite(module, form)

    monkeypatch.setattr("fxopt_inductor.backend.rewrite", noted)
    program, x = block(), torch.randn(2, 4, 6, 6)
    target = replace(CPU, features=features)
    if (reason := Inductor().unavailable()) is not None:
        pytest.skip(reason)
    code = Inductor().lower(program, (x,), target).compile((x,))
    assert [form.reads_bytes for form in forms] == [fast]
    assert ("qlinear_pointwise" in code.code) == fast  # else pointwise convolutions stay such
    with torch.no_grad():
        expected = program(x)
    for output, wanted in zip(code(x), expected, strict=True):
        assert float((output - wanted).abs().max()) <= 0.021


@pytest.mark.parametrize("wide", [True, False])
def test_maxima_of_bytes_are_pooled_by_torch_where_that_is_faster(wide):
    b = Builder(
        into=FakeQuantize(0.02, 128),
        first=qconv(nn.Conv2d(3, 4, 3)),
        middle=FakeQuantize(0.02, 100),
        last=qconv(nn.Conv2d(4, 4, 1)),
    )
    x = b.call("middle", b.call("first", b.call("into", b.input("x", 2, 3, 8, 8))))
    pooled = b.call(aten.max_pool2d.default, x, [3, 3], [2, 2], [1, 1], [1, 1], True)
    program, x = b.program(b.call("last", pooled)), torch.randn(2, 3, 8, 8)
    module = rewrite(flat_module(program, (x,)), Form(compiled=True, wide=wide))
    pools = [n.target for n in module.graph.nodes if "max_pool2d" in str(n.target)]
    assert pools == [aten.max_pool2d.default if wide else torch.ops.quantized.max_pool2d]
    with torch.no_grad():
        expected = program(x)[0]
        assert float((module(x)[0] - expected).abs().max()) < 1e-5
        if (reason := Inductor().unavailable()) is not None:
            pytest.skip(reason)
        target = replace(CPU, features=("avx2", "avx512f") if wide else ("avx2",))
        for cpp_wrapper in (False, True):
            backend = Inductor(cpp_wrapper=cpp_wrapper)
            code = backend.lower(program, (x,), target).compile((x,))
            assert code.precisions() == {"int8": 2}
            assert float((code(x)[0] - expected).abs().max()) < 1e-5
